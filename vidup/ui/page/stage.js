// Two pictures, or two films, one over the other, with a divider between them; zoomed and moved as a view says.

import { make, icon, segments } from "./elements.js";
import { ZOOMS, nextZoom } from "./view.js";

/**
 * A stage for what is before and what is after.
 *
 * Keys: the arrows move the divider (the range element that lies under the pictures), with Shift they move the picture,
 * + and - zoom, 0 shows it whole, 1 shows it pixel by pixel.
 */
export class Stage {
  #names = ["", ""];

  constructor({ view, label = "Before and after", divided = true }) {
    this.view = view;
    this.divided = divided;
    this.after = make("div.layer.after");
    this.before = make("div.layer.before");
    this.divider = make("input.divider", { type: "range", min: "0", max: "100", step: "1", value: 50, "aria-label": `${label}: where they meet` });
    this.tags = [make("span.tag.left", { hidden: true }), make("span.tag.right", { hidden: true })];
    this.rule = make("div.rule", {}, make("div.grip", {}, icon("sides")));
    this.element = make("div.stage", {}, this.after, this.before, this.divider, this.tags, this.rule);
    if (!divided) this.element.setAttribute("tabindex", "0");
    this.#handle();
    this.draw = () => this.#draw();
    new ResizeObserver(this.draw).observe(this.element);
    view.follow(this.draw);
  }

  /**
   * Show pictures or films of equal size; one alone is shown without a divider.
   * @param names  what the left and the right one are called.
   */
  show({ before, after = null, names = ["", ""] }) {
    this.before.replaceChildren(before ?? "");
    this.after.replaceChildren(after ?? "");
    this.element.dataset.mode = after ? "two" : "one";
    this.tags.forEach((tag, index) => { tag.textContent = names[index] ?? ""; tag.hidden = !names[index]; });
    this.#names = names;
    this.#draw();
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height) return;
    const { x, y, scale } = this.view.cornerOn(width, height);
    for (const media of this.element.querySelectorAll(".layer > *")) {
      media.style.width = `${this.view.size.width}px`;
      media.style.height = `${this.view.size.height}px`;
      media.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    }
    this.element.classList.toggle("crisp", scale * devicePixelRatio > 1.99);
    this.element.classList.toggle("zoomed", this.#roomToMove(width, height, scale));
    this.element.style.setProperty("--at", `${100 * this.view.divider}%`);
    this.divider.value = Math.round(100 * this.view.divider);
    this.divider.setAttribute("aria-valuetext", `${this.divider.value} % ${this.#names[0] || "before"}`);
  }

  #roomToMove(width, height, scale) {
    return this.view.size.width * scale > width + 1 || this.view.size.height * scale > height + 1;
  }

  #handle() {
    const { element, view } = this;
    const fingers = new Map();
    let drags = null; // "divider" or "picture"
    let spread = 0;
    const box = () => element.getBoundingClientRect();
    const divide = (event) => view.change({ divider: (event.clientX - box().left) / box().width });
    const apart = () => {
      const [a, b] = [...fingers.values()];
      return Math.hypot(a.x - b.x, a.y - b.y);
    };

    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      element.setPointerCapture(event.pointerId);
      const two = element.dataset.mode === "two" && this.divided;
      const near = Math.abs(event.clientX - box().left - view.divider * box().width) < 24;
      drags = two && (near || !element.classList.contains("zoomed")) ? "divider" : "picture";
      if (fingers.size === 2) { drags = "pinch"; spread = apart(); }
      if (drags === "divider") divide(event);
      element.classList.toggle("moving", drags === "picture" && element.classList.contains("zoomed"));
      (this.divided ? this.divider : element).focus({ preventScroll: true });
      if (event.pointerType === "mouse") event.preventDefault();
    });
    element.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (drags === "divider") divide(event);
      else if (drags === "picture") view.pan(event.clientX - last.x, event.clientY - last.y, element.clientWidth, element.clientHeight);
      else if (drags === "pinch" && fingers.size === 2) {
        const [a, b] = [...fingers.values()];
        const now = apart();
        const zoom = view.scaleOn(element.clientWidth, element.clientHeight) * devicePixelRatio * (now / spread);
        spread = now;
        this.#zoom(Math.min(8, Math.max(0.25, zoom)), (a.x + b.x) / 2 - box().left, (a.y + b.y) / 2 - box().top);
      }
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      element.addEventListener(end, (event) => {
        fingers.delete(event.pointerId);
        if (!fingers.size) { drags = null; element.classList.remove("moving"); }
      });
    }
    element.addEventListener("dblclick", (event) => {
      this.#zoom(view.zoom ? 0 : 1, event.clientX - box().left, event.clientY - box().top);
    });
    element.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const now = view.scaleOn(element.clientWidth, element.clientHeight) * devicePixelRatio;
      this.#zoom(Math.min(8, Math.max(0.1, now * 2 ** (-event.deltaY / 120))), event.clientX - box().left, event.clientY - box().top);
    }, { passive: false });
    this.divider.addEventListener("input", () => view.change({ divider: this.divider.value / 100 }));
    element.addEventListener("keydown", (event) => this.#key(event));
  }

  #zoom(zoom, px = this.element.clientWidth / 2, py = this.element.clientHeight / 2) {
    this.view.zoomAt(zoom, px, py, this.element.clientWidth, this.element.clientHeight);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button")) return;
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (event.key in moves && (event.shiftKey || !this.divided)) this.view.pan(...moves[event.key], this.element.clientWidth, this.element.clientHeight);
    else if (event.key === "+" || event.key === "=") this.#zoom(nextZoom(this.view, 1));
    else if (event.key === "-") this.#zoom(nextZoom(this.view, -1));
    else if (event.key === "0") this.#zoom(0);
    else if (event.key === "1") this.#zoom(1);
    else return;
    event.preventDefault();
  }
}

/** Buttons for the zoom of a view: whole, pixel by pixel, and larger. */
export function zooming(view) {
  const element = segments("Zoom", [[0, "Fit", "The whole picture (0)"], ...ZOOMS.map((zoom) =>
    [zoom, `${zoom}:1`, zoom === 1 ? "One pixel of the result is one of the screen (1)" : `${zoom} times larger`])],
  (zoom) => view.change({ zoom }));
  view.follow(() => element.mark(view.zoom));
  return element;
}

/** An image that is ready to be drawn, so that nothing flickers; rejects where there is none. */
export async function picture(address, alt) {
  const image = new Image();
  image.alt = alt;
  image.draggable = false;
  image.src = address;
  await image.decode();
  return image;
}
