// Where one looks: which part of a picture, how large, and where the divider stands. Several stages may share one.

export class View {
  #listeners = new Set();
  size = { width: 16, height: 9 }; // of the picture, in its own pixels
  zoom = 0; // screen pixels a picture's pixel; 0 fits the whole picture
  centre = { x: 0.5, y: 0.5 }; // shares of the picture
  divider = 0.5; // share of the stage

  follow(act) {
    this.#listeners.add(act);
    act();
  }

  leave(act) {
    this.#listeners.delete(act);
  }

  change(changes) {
    Object.assign(this, changes);
    const within = (value) => Math.min(1, Math.max(0, value));
    this.centre = { x: within(this.centre.x), y: within(this.centre.y) };
    this.divider = within(this.divider);
    for (const act of this.#listeners) act();
  }

  /** CSS pixels that a picture's pixel takes on a stage of such a size. */
  scaleOn(width, height) {
    return this.zoom ? this.zoom / devicePixelRatio : Math.min(width / this.size.width, height / this.size.height);
  }

  /** Where the picture's corner lies on a stage, in CSS pixels: as the centre says, without empty margins. */
  cornerOn(width, height) {
    const scale = this.scaleOn(width, height);
    const place = (stage, picture, share) => {
      const length = picture * scale;
      return length <= stage ? (stage - length) / 2 : Math.min(0, Math.max(stage - length, stage / 2 - share * length));
    };
    return { x: place(width, this.size.width, this.centre.x), y: place(height, this.size.height, this.centre.y), scale };
  }

  /** Move by so many CSS pixels of a stage. */
  pan(dx, dy, width, height) {
    const { x, y, scale } = this.cornerOn(width, height);
    const share = (stage, corner, moved, length) => (length <= stage ? 0.5 : (stage / 2 - Math.min(0, Math.max(stage - length, corner + moved))) / length);
    this.change({ centre: {
      x: share(width, x, dx, this.size.width * scale),
      y: share(height, y, dy, this.size.height * scale),
    } });
  }

  /** Another zoom, with the place under (px, py) of the stage kept where it is. */
  zoomAt(zoom, px, py, width, height) {
    const before = this.cornerOn(width, height);
    const at = { x: (px - before.x) / before.scale, y: (py - before.y) / before.scale };
    this.zoom = zoom;
    const scale = this.scaleOn(width, height);
    this.change({ centre: {
      x: (at.x * scale - px + width / 2) / (this.size.width * scale),
      y: (at.y * scale - py + height / 2) / (this.size.height * scale),
    } });
  }
}

export const ZOOMS = [1, 2, 4, 8];

/** The next larger zoom (`by` 1) or the next smaller (-1) than that of a view; 0 is the whole picture. */
export function nextZoom(view, by) {
  const zooms = [0, ...ZOOMS];
  const at = zooms.indexOf(view.zoom);
  return zooms[Math.min(zooms.length - 1, Math.max(0, (at < 0 ? 1 : at) + by))];
}
