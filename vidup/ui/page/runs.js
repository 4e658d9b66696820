// The queue of runs: how far each is, its newest frame, its receipt; pause, go on, take away.

import { make, button, copied, faultLine, relabel, say, tell, write } from "./elements.js";
import { lasting, grouped, lastOf, percent, clock } from "./words.js";
import { Stage, picture, zooming } from "./stage.js";
import { View } from "./view.js";
import * as server from "./server.js";

const CALLED = { waiting: "Waiting", running: "Running", paused: "Paused", done: "Done", failed: "Failed" };

const ORDER = ["running", "waiting", "paused", "failed", "done"];

/** Whether a run is at work, or will be. */
export const isActive = ({ state }) => state === "running" || state === "waiting";

export class Runs {
  #cards = new Map();
  #looking = false;
  #timer = 0;
  #asked = 0;

  /** `counted` is given all runs whenever they were asked for. */
  constructor(counted) {
    this.counted = counted;
    this.list = make("div.list");
    this.empty = make("div.empty", { hidden: true }, make("p", {}, "Nothing has been run yet."), make("a", { href: "#choose" }, "Choose a film"));
    this.element = make("div.runs", {}, make("header.of", {}, make("div", {}, make("h1", {}, "Runs"),
      make("p.dim", {}, "They go on when this page is closed. One runs at a time, in this order.")),
    button("Another film", () => { location.hash = "#choose"; }, { image: "folder" })), this.list, this.empty);
    document.addEventListener("visibilitychange", () => document.hidden || this.ask());
  }

  shown() {
    this.#looking = true;
    this.ask();
  }

  left() {
    this.#looking = false;
  }

  /** Ask how the runs stand, now and from now on. */
  async ask() {
    clearTimeout(this.#timer);
    const asked = (this.#asked += 1);
    let active = false;
    try {
      const { runs } = await server.runs();
      if (asked !== this.#asked) return;
      this.#show(runs);
      active = runs.some(isActive);
    } catch { /* said above the page */ }
    if (asked !== this.#asked) return;
    this.#timer = setTimeout(() => this.ask(), document.hidden ? 15000 : this.#looking || active ? 1000 : 5000);
  }

  #show(runs) {
    this.counted(runs);
    this.empty.hidden = runs.length > 0;
    const others = runs.filter((run) => !isActive(run)).reverse(); // the newest first
    const sorted = [...runs.filter(isActive), ...others].sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
    for (const [id, card] of this.#cards) {
      if (sorted.some((run) => run.id === id)) continue;
      card.element.remove();
      this.#cards.delete(id);
    }
    sorted.forEach((run, index) => {
      if (!this.#cards.has(run.id)) this.#cards.set(run.id, new Card(run, () => this.ask(), index === 0));
      const card = this.#cards.get(run.id);
      card.show(run);
      if (this.list.children[index] !== card.element) this.list.insertBefore(card.element, this.list.children[index] ?? null);
    });
  }
}

class Card {
  #run = {};
  #newest = "";
  #asked = false;

  /** @param first  whether it stands on top: what is over is shown in short below it. */
  constructor(run, again, first) {
    this.again = again;
    const open = first || isActive(run);
    this.view = new View();
    this.stage = new Stage({ view: this.view, label: "The newest frame, before and after" });
    this.bar = make("progress", { max: "1", value: 0, "aria-label": `${lastOf(run.input)}: done` });
    this.share = make("strong.share");
    this.state = make("span.state");
    this.line = make("p.line");
    this.fault = faultLine();
    this.receipt = make("ul.receipt");
    this.received = make("details", { hidden: true, open }, make("summary", {}, "Receipt"), this.receipt);
    this.command = copied();
    this.newest = make("span");
    this.shows = make("details.newest", { hidden: true, open }, make("summary", {}, this.newest), this.stage.element, make("div.bar", {}, zooming(this.view)));
    this.pause = button("Pause", () => this.#do(server.pauseRun, "Pausing: what is done is kept"), { image: "pause" });
    this.resume = button("Go on", () => this.#do(server.resumeRun, "It goes on where it was"), { image: "play" });
    this.stop = button("Stop", () => this.#forget(), { image: "stop", kind: "quiet" });
    this.buttons = make("div.buttons", {}, this.pause, this.resume, this.stop);
    this.going = make("div.going", {}, this.share, this.bar);
    this.head = make("div.head", {}, make("div", {}, make("h2", { title: run.input }, lastOf(run.input)), make("p.dim.to", { title: run.output }, run.output)), this.state);
    this.element = make("article.run", { "aria-label": lastOf(run.input) }, this.head, this.going,
      this.line, this.fault, this.shows, this.received,
      make("details", {}, make("summary", {}, "The same on the command line"), this.command));
  }

  show(run) {
    this.#run = run;
    this.element.dataset.state = run.state;
    write(this.state, CALLED[run.state]);
    if (run.state === "running" && !run.frames) this.bar.removeAttribute("value");
    else this.bar.value = run.share;
    write(this.share, percent(run.share));
    write(this.line, words(run));
    tell(this.fault, run.error ?? "");
    this.pause.hidden = !isActive(run);
    this.resume.hidden = run.state !== "paused" && run.state !== "failed";
    write(this.resume.querySelector("span"), run.state === "failed" ? "Try again" : "Go on");
    const over = run.state === "done" || run.state === "failed";
    relabel(this.stop, this.#asked ? "Really stop?" : over ? "Take off the list" : "Stop", over ? "close" : "stop");
    this.going.hidden = run.state === "done";
    const place = run.state === "done" ? this.head : this.going;
    if (this.buttons.parentElement !== place) place.append(this.buttons);
    this.received.hidden = !run.receipt.length;
    if (this.receipt.children.length !== run.receipt.length) this.receipt.replaceChildren(...run.receipt.map((line) => make("li", {}, line)));
    this.command.write(run.command);
    this.#frame(run.newest);
  }

  async #frame(newest) {
    if (!newest || this.#newest === newest.after) return;
    this.#newest = newest.after;
    try {
      const [before, after] = await Promise.all([picture(newest.before, "Before: enlarged by bicubic"), picture(newest.after, "After")]);
      this.view.change({ size: { width: after.naturalWidth, height: after.naturalHeight } });
      this.stage.element.style.setProperty("--shape", String(after.naturalWidth / after.naturalHeight));
      this.stage.show({ before, after, names: ["Before", "After"] });
      write(this.newest, `${this.#run.state === "done" ? "A frame of it" : "The newest frame"}, at ${clock(Number(newest.at))}`);
      this.shows.hidden = false;
    } catch { /* the next one comes soon */ }
  }

  /** Stop and forget: asked twice where something would be lost. */
  async #forget() {
    const loses = isActive(this.#run) || this.#run.state === "paused";
    if (loses && !this.#asked) {
      this.#asked = true;
      this.show(this.#run);
      setTimeout(() => { this.#asked = false; this.show(this.#run); }, 4000);
      return;
    }
    await this.#do(server.forgetRun, loses ? "Stopped" : "");
  }

  async #do(act, text) {
    try {
      await act(this.#run.id);
      if (text) say(text);
    } catch (fault) {
      say(fault.message);
    }
    this.again();
  }
}

function words({ state, frames, of, rate, time_left: left, diffused, line }) {
  if (state === "failed") return frames ? `${grouped(frames)} of ${grouped(of)} frames are kept` : "";
  if (state === "waiting") return line || "Waits for its turn";
  const parts = [];
  if (of) parts.push(`${grouped(frames)} of ${grouped(of)} frames`);
  if (state === "running") {
    if (rate) parts.push(rate >= 1 ? `${rate.toFixed(1)} a second` : `${(1 / rate).toFixed(1)} s a frame`);
    if (left !== null && left !== undefined) parts.push(`${lasting(left)} left`);
  }
  if (diffused !== null && diffused !== undefined) parts.push(`${Math.round(100 * diffused)} % of the pixels computed, the rest carried`);
  if (state === "running" && line && !frames) parts.push(line);
  return parts.join(" · ") || line;
}
