// The film as a strip of frames over time: one is picked from it, and found exactly below it.

import { make, button, write } from "./elements.js";
import { clock, typedTime } from "./words.js";
import { chosen, choose } from "./chosen.js";
import { thumbnail } from "./thumbnails.js";

export class Strip {
  #frames = [];
  #of = "";
  #length = 0;
  #rate = 25;
  #shape = 16 / 9;
  #settling = 0;

  constructor() {
    this.frames = make("div.frames", { role: "listbox", "aria-label": "Frames over time", "aria-orientation": "horizontal", tabindex: "0" });
    this.seek = make("input", { type: "range", min: "0", value: 0, step: "any", "aria-label": "Time of the frame" });
    this.time = make("input.time", { type: "text", "aria-label": "Time of the frame, such as 1:05.5", autocomplete: "off", spellcheck: "false" });
    this.element = make("div.strip", {}, this.frames, make("div.transport", {},
      button("", () => this.#move(-1), { image: "back", label: "One frame back", kind: "quiet" }),
      button("", () => this.#move(1), { image: "on", label: "One frame on", kind: "quiet" }),
      this.seek, this.time, this.length = make("span.dim.length")));
    this.seek.addEventListener("input", () => {
      this.time.value = clock(Number(this.seek.value));
      clearTimeout(this.#settling);
      this.#settling = setTimeout(() => this.#take(Number(this.seek.value)), 200);
    });
    this.time.addEventListener("change", () => {
      const at = typedTime(this.time.value);
      if (at === null) this.mark();
      else this.#take(at);
    });
    this.frames.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const now = this.#frames.findIndex((each) => each.getAttribute("aria-selected") === "true");
      const next = Math.min(this.#frames.length - 1, Math.max(0, now + moves[event.key]));
      this.#take(Number(this.#frames[next].dataset.at));
    });
    new ResizeObserver(() => this.#fill()).observe(this.frames);
  }

  /** A film of so many seconds; a still picture has no strip. */
  show({ duration, rate, still, width, height }) {
    this.element.hidden = still;
    this.#length = Math.max(0, duration - 1 / (rate || 25));
    this.#rate = rate || 25;
    this.seek.max = String(this.#length);
    write(this.length, `of ${clock(duration, duration < 60 ? 2 : 0)}`);
    this.#shape = width / height;
    this.#fill();
    this.mark();
  }

  #fill() {
    const wide = this.frames.clientWidth;
    if (!wide || !this.#length || this.element.hidden) return;
    const count = Math.max(4, Math.min(16, Math.round(wide / (64 * Math.min(2, Math.max(0.7, this.#shape))))));
    const of = `${chosen.input} ${count} ${this.#length}`;
    if (of === this.#of) return;
    this.#of = of;
    this.#frames = Array.from({ length: count }, (_, index) => {
      const at = ((index + 0.5) / count) * this.#length;
      return make("div.frame", { role: "option", id: `frame-${index}`, "data-at": at, "aria-label": clock(at), title: clock(at), onclick: () => this.#take(at) },
        thumbnail(chosen.input, at));
    });
    this.frames.replaceChildren(...this.#frames);
    this.mark();
  }

  /** Show which frame is chosen. */
  mark() {
    const at = chosen.at ?? 0;
    this.seek.value = at;
    this.seek.setAttribute("aria-valuetext", clock(at));
    if (document.activeElement !== this.time) this.time.value = clock(at);
    let nearest = null;
    for (const each of this.#frames) {
      each.setAttribute("aria-selected", "false");
      if (!nearest || Math.abs(each.dataset.at - at) < Math.abs(nearest.dataset.at - at)) nearest = each;
    }
    nearest?.setAttribute("aria-selected", "true");
    if (nearest) this.frames.setAttribute("aria-activedescendant", nearest.id);
  }

  #take(at) {
    choose({ at: Math.min(this.#length, Math.max(0, at)) });
    this.mark();
  }

  #move(by) {
    this.#take((Math.round((chosen.at ?? 0) * this.#rate) + by) / this.#rate);
  }
}
