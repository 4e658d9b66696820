// One preview's life: asked for, followed, cancelled when what it is of changes, and kept while the page is open.

import { make, button, write } from "./elements.js";
import { aFrame, lasting, lastOf } from "./words.js";
import { chosen, given } from "./chosen.js";
import { presetNamed } from "./presets.js";
import * as server from "./server.js";

const made = new Map(); // what is done, by what was asked for
const costs = new Map(); // the same, by film and settings
const QUICK_MODELS = ["mini", "nearest", "bilinear", "bicubic", "lanczos"];
const QUICK = 8; // seconds a frame that nobody minds to wait for

/** What settings are called in a few words: "mini", "mini, changed". */
export function nameOf(settings) {
  const { preset, model, ...others } = settings;
  const base = lastOf(String(model ?? preset ?? "balanced")).replace(/\.(toml|safetensors|pth|pt|ckpt)$/, "");
  return preset && (model || Object.keys(others).length) && model !== preset ? `${base}, changed` : base;
}

/** The model that settings mean. */
function modelOf(settings) {
  return settings.model ?? presetNamed(settings.preset)?.settings.model ?? "x4";
}

const costKey = (input, settings) => JSON.stringify([input, settings]);

/** What a preview of a film with such settings has measured: `{ seconds_a_frame, estimate }`, or undefined. */
export const costOf = (input, settings) => costs.get(costKey(input, settings));

/** Whether a preview may begin without being asked for: its model is small, or was quick before. */
function isQuick(input, settings) {
  const cost = costOf(input, settings);
  return cost ? cost.seconds_a_frame < QUICK : QUICK_MODELS.includes(modelOf(settings));
}

/** A preview with a line that says how it stands. */
export class Preview {
  #work = null;
  #running = "";
  #timer = 0;
  static still = false; // whether what is looked at is one picture alone

  /**
   * @param kind  "frame" or "moving".
   * @param settings  what gives the settings of the moment.
   * @param turned  is given the preview whenever its state has changed.
   * @param show  is given what is done, and may take its time.
   * @param ready  whether film and settings are known to be good.
   * @param doing  what the button says.
   */
  constructor({ kind, settings = given, show, ready, doing, turned }) {
    Object.assign(this, { kind, settings, show, ready, doing, turned });
    this.state = "idle";
    this.result = null;
    this.text = make("p.text", { role: "status" });
    this.bar = make("progress", { max: "1", "aria-label": "Preview" });
    this.begins = button(doing, () => this.begin(), { kind: "begin", image: "play" });
    this.cancels = button("Cancel", () => this.stop());
    this.element = make("div.status", {}, this.text, this.bar, this.begins, this.cancels);
    this.#set("idle");
  }

  get request() {
    return { input: chosen.input, at: chosen.at ?? 0, settings: this.settings(), kind: this.kind };
  }

  /** Something may have changed: what is at work for what was before is cancelled at once, and made anew a little later. */
  follow() {
    const key = JSON.stringify(this.request);
    if (this.#running === key) return;
    this.stop();
    const known = made.get(key);
    if (known) {
      this.#finish(known, key);
      return;
    }
    this.#set(this.result ? "old" : "idle");
    if (chosen.ticked && isQuick(chosen.input, this.settings())) this.#timer = setTimeout(() => this.begin(), 500);
  }

  /** Nothing is shown any more: another frame, another film. */
  clear() {
    this.stop();
    this.result = null;
    this.#set("idle");
  }

  async begin() {
    this.stop();
    if (!this.ready()) return;
    const request = this.request;
    const key = JSON.stringify(request);
    const work = this.#work = new AbortController();
    this.#running = key;
    this.#set("running", { done: 0, line: "Asking" });
    try {
      const result = await server.preview(request, work.signal, (state) => this.#set("running", state));
      made.set(key, result);
      costs.set(costKey(request.input, request.settings), result);
      if (!work.signal.aborted) await this.#finish(result, key);
    } catch (fault) {
      if (!work.signal.aborted) this.#set(fault.name === "AbortError" ? (this.result ? "old" : "idle") : "failed", { error: fault.message });
    }
    if (this.#work === work) { this.#work = null; this.#running = ""; }
  }

  /** Cancel what is at work. */
  stop() {
    clearTimeout(this.#timer);
    if (!this.#work) return;
    this.#work.abort();
    this.#work = null;
    this.#running = "";
    this.#set(this.result ? "old" : "idle");
  }

  async #finish(result, key) {
    try {
      await this.show(result, this.settings());
    } catch {
      made.delete(key); // the server has cleared it away
      this.#set(this.result ? "old" : "idle");
      return;
    }
    if (JSON.stringify(this.request) !== key) return;
    this.result = result;
    this.#set("done", result);
  }

  #set(state, told = {}) {
    this.state = state;
    this.element.dataset.state = state;
    this.bar.hidden = this.cancels.hidden = state !== "running";
    this.begins.hidden = state === "running" || state === "done";
    write(this.begins.querySelector("span"), state === "failed" ? "Try again" : state === "old" ? `${this.doing} again` : this.doing);
    if (told.done) this.bar.value = told.done;
    else this.bar.removeAttribute("value");
    write(this.text, this.#words(state, told));
    this.text.classList.toggle("fault", state === "failed");
    this.turned(this);
  }

  #words(state, told) {
    if (state === "running") return told.line || (told.state === "waiting" ? "Waiting for its turn" : "At work");
    if (state === "failed") return told.error;
    if (state === "old") return "Made with other settings.";
    if (state === "idle") return "";
    const each = told.seconds_a_frame ? `${aFrame(told.seconds_a_frame)} a frame` : "Done";
    if (Preview.still) return told.seconds_a_frame ? `Done in ${aFrame(told.seconds_a_frame)}` : "Done";
    return told.estimate ? `${each}, the whole film ${lasting(told.estimate)}` : each;
  }
}
