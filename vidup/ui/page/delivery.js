// What will be made, where it goes, and the button that begins it.

import { make, button, copied, faultLine, tell, write } from "./elements.js";
import { lasting, lastOf, grouped } from "./words.js";
import { chosen, choose, given } from "./chosen.js";
import { saving } from "./presets.js";
import { costOf } from "./preview.js";
import * as server from "./server.js";

export class Delivery {
  #looked = null;
  #busy = false;
  #proposed = "";

  /** @param ran  is called with a run's id once it stands in the queue; @param saved  with a preset's path; @param refused  where a run was refused. */
  constructor({ ran, saved, refused }) {
    this.ran = ran;
    this.refused = refused;
    this.output = make("input", { type: "text", id: "output", autocomplete: "off", spellcheck: "false",
      onchange: () => choose({ output: this.output.value.trim() === this.#proposed ? "" : this.output.value.trim() }) });
    this.replace = make("label.check", { hidden: true }, make("input", { type: "checkbox", onchange: () => this.#allow() }), "Replace the file that exists");
    this.command = copied();
    this.fault = faultLine();
    this.size = make("strong");
    this.facts = make("span.dim");
    this.goes = button("", () => { this.output.scrollIntoView({ block: "center" }); this.output.focus(); this.output.select(); }, { kind: "goes" });
    this.goes.append(make("span"));
    this.run = button("Run", () => this.#start(), { kind: "main", image: "play" });
    this.element = make("section.delivery", { "aria-label": "Result" }, make("h2", {}, "Result"),
      make("label.above", { for: "output" }, "Goes to"), this.output,
      make("details", {}, make("summary", {}, "The same on the command line"), this.command),
      make("details", {}, make("summary", {}, "Save these settings as a preset"),
        saving(async (name, replace) => {
          const { path } = await server.savePreset({ name, settings: given(), replace });
          saved(path);
          return path;
        })));
    this.bar = make("div.runbar", {}, make("div.sum", {}, this.size, this.facts, this.goes), this.fault, this.replace, this.run);
  }

  /** What the server told of the film with these settings; null where it has not yet, or there is a fault. */
  show(looked) {
    this.#looked = looked;
    if (looked) {
      const output = chosen.output || looked.output;
      if (!chosen.output) this.#proposed = output;
      if (document.activeElement !== this.output) this.output.value = output;
      this.command.write(looked.command);
      write(this.goes.lastChild, `to ${lastOf(output)}`);
      this.goes.title = `${output}: change it`;
      this.replace.hidden = !looked.exists;
      if (!looked.exists) this.replace.firstChild.checked = false;
      this.cost();
    }
    this.#allow();
  }

  /** How long it takes: as measured by a preview, or as estimated; while that is asked anew, only what is known already. */
  cost(asking = false) {
    const looked = this.#looked;
    if (!looked) return;
    const [width, height] = looked.result;
    write(this.size, `${width} × ${height}`);
    const estimate = costOf(chosen.input, given())?.estimate ?? (asking ? null : looked.estimate);
    const frames = looked.still ? "one picture" : `${grouped(looked.frames)} frames`;
    write(this.facts, `${frames}, ${estimate ? `about ${lasting(estimate)}` : asking ? "…" : "preview a frame to see how long it takes"}`);
  }

  /** What stands before a new run in the queue. */
  queue(many) {
    write(this.run.querySelector("span"), many ? "Add to queue" : "Run");
  }

  #allow() {
    const blocked = !this.replace.hidden && !this.replace.firstChild.checked;
    this.run.disabled = !this.#looked || this.#busy || blocked;
    this.run.title = blocked ? "The file exists: tick Replace, or choose another name" : "";
  }

  async #start() {
    this.#busy = true;
    this.#allow();
    tell(this.fault, "");
    try {
      const { id } = await server.addRun({
        input: chosen.input, output: chosen.output || this.#looked.output, settings: given(),
        replace: !this.replace.hidden && this.replace.firstChild.checked,
      });
      this.ran(id);
    } catch (fault) {
      tell(this.fault, fault.message);
      this.refused();
    }
    this.#busy = false;
    this.#allow();
  }
}
