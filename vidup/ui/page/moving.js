// Two films played in step: what is before and what is after, frame by frame.

import { make, button, relabel, segments, write } from "./elements.js";
import { clock } from "./words.js";

/** A player for two films of equal frames; `bar` holds its controls, `load` gives what a stage shows. */
export class InStep {
  #films = [];
  #fps = 25;
  #frames = 1;
  #playing = false;
  #ticking = 0;

  constructor() {
    this.toggle = button("Play", () => this.play(!this.#playing), { image: "play", kind: "toggle" });
    this.seek = make("input", { type: "range", min: "0", max: "1", step: "1", value: 0, "aria-label": "Frame of the preview", oninput: () => this.#show(Number(this.seek.value)) });
    this.time = make("output.time", {}, "0:00.00");
    this.speed = segments("Speed", [[1, "1×"], [0.5, "½×"], [0.25, "¼×"]], (speed) => this.#pace(speed));
    this.bar = make("div.transport.player", {}, this.toggle,
      button("", () => this.move(-1), { image: "back", label: "One frame back", kind: "quiet" }),
      button("", () => this.move(1), { image: "on", label: "One frame on", kind: "quiet" }),
      this.seek, this.time, this.speed);
    this.speed.mark(1);
    this.#pace(1);
  }

  /** Two films that are ready to play, in the order before, after. */
  async load({ before, after, fps }) {
    this.play(false);
    this.#films = await Promise.all([before, after].map(opened));
    this.#fps = fps || 25;
    const length = Math.min(...this.#films.map((film) => film.duration)) || 2;
    this.#frames = Math.max(1, Math.round(length * this.#fps));
    this.seek.max = String(this.#frames - 1);
    this.#pace(this.rate);
    this.#show(0);
    return this.#films;
  }

  /** Play, or stop playing. */
  play(on) {
    this.#playing = on && this.#films.length === 2;
    relabel(this.toggle, this.#playing ? "Pause" : "Play", this.#playing ? "pause" : "play");
    cancelAnimationFrame(this.#ticking);
    for (const film of this.#films) {
      if (this.#playing) film.play().catch(() => this.play(false));
      else film.pause();
    }
    if (this.#playing) this.#ticking = requestAnimationFrame(() => this.#keep());
    else if (this.#films.length) this.#show(this.#frame());
  }

  move(by) {
    this.play(false);
    this.#show((this.#frame() + by + this.#frames) % this.#frames);
  }

  #frame() {
    return Math.min(this.#frames - 1, Math.floor(this.#films[1].currentTime * this.#fps + 0.01));
  }

  #show(frame) {
    // The middle of a frame's time, so that rounding shows no neighbour.
    for (const film of this.#films) film.currentTime = (frame + 0.5) / this.#fps;
    this.#tell(frame);
  }

  #tell(frame) {
    this.seek.value = frame;
    this.seek.setAttribute("aria-valuetext", `frame ${frame + 1} of ${this.#frames}`);
    write(this.time, `${clock(frame / this.#fps)}  ${frame + 1}/${this.#frames}`);
  }

  #pace(speed) {
    this.rate = speed;
    this.speed.mark(speed);
    for (const film of this.#films) film.playbackRate = speed;
  }

  /** While they play: the one follows the other within half a frame, and both begin again together. */
  #keep() {
    const [before, after] = this.#films;
    const end = (this.#frames - 0.5) / this.#fps;
    if (after.ended || before.ended || after.currentTime >= end) {
      before.currentTime = after.currentTime = 0;
      for (const film of this.#films) if (film.paused) film.play().catch(() => {});
    } else if (!after.seeking && !before.seeking) {
      const ahead = before.currentTime - after.currentTime;
      if (Math.abs(ahead) > 2 / this.#fps) before.currentTime = after.currentTime;
      else before.playbackRate = this.rate * (Math.abs(ahead) > 0.25 / this.#fps ? (ahead > 0 ? 0.9 : 1.1) : 1);
    }
    this.#tell(this.#frame());
    if (this.#playing) this.#ticking = requestAnimationFrame(() => this.#keep());
  }
}

function opened(address) {
  const film = make("video", { muted: true, playsinline: true, preload: "auto", disablepictureinpicture: true, tabindex: "-1" });
  return new Promise((resolve, reject) => {
    film.addEventListener("loadeddata", () => resolve(film), { once: true });
    film.addEventListener("error", () => reject(new Error("the browser cannot play it")), { once: true });
    film.src = address;
  });
}
