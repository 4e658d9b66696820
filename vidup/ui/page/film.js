// A film that is looked at before it is run: a frame before and after, presets side by side, two seconds moving.

import { make, button, segments, write } from "./elements.js";
import { grouped, lasting, lastOf } from "./words.js";
import { chosen, choose, given, onChange } from "./chosen.js";
import { View } from "./view.js";
import { Stage, picture, zooming } from "./stage.js";
import { Preview, nameOf } from "./preview.js";
import { InStep } from "./moving.js";
import { Strip } from "./strip.js";
import { Sheet } from "./sheet.js";
import { Presets } from "./presets.js";
import { Settings } from "./settings.js";
import { Delivery } from "./delivery.js";
import * as server from "./server.js";

const WAYS = [
  ["frame", "One frame", "A frame before and after"],
  ["sheet", "Side by side", "Several presets, each with its cost"],
  ["moving", "Two seconds", "Before and after, played in step"],
];

export class Film {
  #of = "";
  #looked = null;
  #asking = null;
  #timer = 0;
  #base = "";

  /** `lost` is called with a line where the film cannot be read, `ran` with the id of a new run. */
  constructor(start, { lost, ran }) {
    this.lost = lost;
    this.view = new View();
    this.stage = new Stage({ view: this.view });
    this.player = new InStep();
    this.strip = new Strip();
    const ready = () => this.#looked !== null;
    this.frame = new Preview({ kind: "frame", ready, doing: "Preview this frame",
      show: (result, settings) => this.#showFrame(result, settings), turned: (preview) => this.#stateOf(preview) });
    this.moving = new Preview({ kind: "moving", ready, doing: "Preview two seconds",
      show: (result, settings) => this.#showMoving(result, settings), turned: (preview) => this.#stateOf(preview) });
    this.presets = new Presets(start.presets);
    this.sheet = new Sheet({ folders: start.folders, view: this.view, ready });
    this.settings = new Settings(start);
    this.delivery = new Delivery({ ran, saved: () => this.#again(), refused: () => this.#ask() });
    this.#lay();
    onChange(["input"], () => this.#film());
    onChange(["settings", "preset", "output"], () => this.#look());
    onChange(["settings", "preset"], () => this.#current()?.follow());
    onChange(["at"], () => { this.strip.mark(); this.#still(); this.frame.clear(); this.moving.clear(); this.#current()?.follow(); });
    onChange(["way"], () => this.#turn());
  }

  #lay() {
    this.title = make("h1");
    this.line = make("p.facts.dim");
    this.facts = make("dl.facts");
    this.plan = make("ul.plan");
    this.notes = make("ul.notes");
    this.ways = segments("What to look at", WAYS, (way) => choose({ way }));
    const follows = make("label.check", { title: "A quick preview is made again whenever something changes" },
      make("input", { type: "checkbox", checked: chosen.ticked, onchange: (event) => choose({ ticked: event.target.checked }) }), "Preview as I change things");
    this.hint = make("p.hint", {}, "Drag the line to compare. Double click: pixel by pixel. Keys: arrows, + and −, 0, 1.");
    this.looks = make("section.looks", { "aria-label": "Before and after" },
      make("div.bar", {}, this.ways, zooming(this.view)),
      this.stage.element, this.sheet.element,
      make("div.under", {}, this.frame.element, this.moving.element, follows), this.player.bar, this.strip.element, this.hint);
    this.about = make("section.about", { "aria-label": "About the film" },
      make("details", { open: true }, make("summary", {}, "Good to know"), this.notes),
      make("details", {}, make("summary", {}, "What is in the file"), this.facts),
      make("details", {}, make("summary", {}, "What will be done"), this.plan));
    this.element = make("div.film", {},
      make("header.of", {}, make("div", {}, this.title, this.line), button("Another film", () => { location.hash = "#choose"; }, { image: "folder" })),
      make("div.columns", {}, this.looks, make("div.side", {}, this.presets.element, this.settings.element, this.delivery.element), this.about),
      this.delivery.bar);
  }

  #current() {
    return { frame: this.frame, moving: this.moving }[chosen.way];
  }

  /** The view is shown: what is chosen may come from an earlier visit. */
  shown() {
    if (this.#of !== chosen.input) this.#film();
    else {
      this.#turn();
      this.#look(); // a run may have made the output meanwhile
    }
  }

  /** The view is left: nothing is worked on for no one. */
  left() {
    for (const preview of [this.frame, this.moving]) preview.stop();
    this.sheet.turn(false);
    this.player.play(false);
  }

  #film() {
    this.#of = chosen.input;
    this.#looked = null;
    this.#base = "";
    this.frame.clear();
    this.moving.clear();
    this.stage.show({ before: null });
    this.delivery.show(null);
    if (!chosen.input) return;
    write(this.title, lastOf(chosen.input));
    this.title.title = chosen.input;
    write(this.line, "Reading it");
    this.#still();
    this.#ask();
  }

  #shape(width, height) {
    this.view.size = { width, height };
    for (const { element } of [this.stage, this.sheet]) element.style.setProperty("--shape", String(width / height));
    this.view.change({});
  }

  /** Ask anew what is to be told, a little later: someone may be typing. */
  #look() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.settings.blame("");
    this.delivery.cost(true);
    this.#timer = setTimeout(() => this.#ask(), 300);
  }

  async #ask() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    const asking = this.#asking = new AbortController();
    const first = this.#looked === null;
    try {
      const looked = await server.look({ input: chosen.input, settings: given(), ...(chosen.output ? { output: chosen.output } : {}) }, asking.signal);
      this.#told(looked, first);
    } catch (fault) {
      if (!asking.signal.aborted) await this.#refused(fault.message, first, asking.signal);
    }
  }

  /** The film cannot be upscaled like this: is it the film, or the settings? */
  async #refused(line, first, signal) {
    try {
      if (first) this.#told(await server.look({ input: chosen.input, settings: { model: "nearest" } }, signal), true);
      this.delivery.show(null);
      this.settings.blame(line);
    } catch (fault) {
      if (!signal.aborted) this.lost(fault.message);
    }
  }

  #told(looked, first) {
    this.#looked = looked;
    this.element.classList.toggle("still", looked.still);
    this.settings.blame("");
    this.#shape(...looked.result);
    write(this.line, summary(looked));
    this.facts.replaceChildren(...looked.facts.flatMap(([label, text]) => [make("dt", {}, label), make("dd", {}, text)]));
    this.plan.replaceChildren(...looked.plan.map((line) => make("li", {}, line)));
    this.notes.replaceChildren(...looked.notes.map((line) => make("li", {}, line)));
    this.notes.closest("details").hidden = !looked.notes.length;
    Preview.still = looked.still;
    this.delivery.show(looked);
    if (looked.more) this.#timer = setTimeout(() => this.#ask(), 1500); // how much is carried is being found out
    if (!first) return;
    this.strip.show(looked);
    if (looked.still && chosen.way === "moving") choose({ way: "frame" });
    if (chosen.at === null || chosen.at > looked.duration) choose({ at: looked.still ? 0 : Math.round(looked.duration * 400) / 1000 });
    else { this.strip.mark(); this.#still(); }
    this.#turn();
  }

  #turn() {
    const { way } = chosen;
    this.ways.mark(way);
    this.element.dataset.way = way;
    this.stage.element.hidden = way === "sheet";
    this.sheet.element.hidden = way !== "sheet";
    this.frame.element.hidden = way !== "frame";
    this.moving.element.hidden = way !== "moving";
    this.player.bar.hidden = way !== "moving";
    this.player.play(false);
    for (const preview of [this.frame, this.moving]) if (preview !== this.#current()) preview.stop();
    this.sheet.turn(way === "sheet" && this.#looked !== null);
    if (!this.#looked) return;
    this.#base = "";
    this.#still();
    this.#current()?.follow();
  }

  /** The frame as it is, enlarged by the browser, until there is more; of a film of which nothing is known yet, one near its begin. */
  async #still() {
    if (!chosen.input || chosen.way === "sheet") return;
    const base = `${chosen.input} ${chosen.at}`;
    if (this.#base === base) return;
    this.#base = base;
    try {
      const image = await picture(server.frameOf(chosen.input, chosen.at ?? 1), "The frame as it is");
      if (this.#base !== base || this.#current()?.state === "done") return;
      if (!this.#looked) this.#shape(image.naturalWidth, image.naturalHeight);
      this.stage.show({ before: image, names: ["As it is"] });
    } catch { /* what keeps it from being read is told where the film is looked at */ }
  }

  async #showFrame(result, settings) {
    const [before, after] = await Promise.all([picture(result.before, "Before: enlarged by bicubic"), picture(result.after, `After: ${nameOf(settings)}`)]);
    if (chosen.way === "frame") this.#pair(before, after, result, settings);
  }

  async #showMoving(result, settings) {
    const [before, after] = await this.player.load(result);
    if (chosen.way !== "moving") return;
    this.#pair(before, after, result, settings);
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.player.play(true);
  }

  #pair(before, after, { width, height }, settings) {
    this.view.change({ size: { width, height } });
    this.stage.show({ before, after, names: ["Before: bicubic", `After: ${nameOf(settings)}`] });
  }

  #stateOf(preview) {
    const { state } = preview;
    if (preview === this.#current()) {
      this.stage.element.dataset.state = state;
      this.player.bar.toggleAttribute("inert", state !== "done" && state !== "old");
    }
    if (state === "done") this.delivery.cost();
  }

  /** A preset was saved: it stands among the others. */
  async #again() {
    try {
      const { presets } = await server.start();
      this.presets.set(presets);
    } catch { /* it is there after a reload */ }
  }
}

function summary({ width, height, rate, duration, frames, still }) {
  const size = `${width} × ${height}`;
  if (still) return `${size}, a picture`;
  const time = duration < 60 ? `${Math.round(duration * 10) / 10} s` : lasting(duration);
  return `${size}, ${time}, ${grouped(frames)} frames, ${Math.round(rate * 1000) / 1000} fps`;
}
