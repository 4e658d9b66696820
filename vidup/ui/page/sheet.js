// Several presets side by side: the same place of the same frame, each with what it costs.

import { make, button, write } from "./elements.js";
import { chosen, choose, given, onChange } from "./chosen.js";
import { Stage, picture } from "./stage.js";
import { Preview, nameOf } from "./preview.js";
import { presets } from "./presets.js";
import * as server from "./server.js";

/** Settings that a preset decides: beside others they are those others' own. */
const A_PRESETS = ["model", "revision", "sampler", "steps", "guidance_scale", "guidance_start", "guidance_end", "noise_level",
  "vae", "vae_attention", "temporal", "dtype", "tokenizer"];

const shared = () => Object.fromEntries(Object.entries(chosen.settings).filter(([name]) => !A_PRESETS.includes(name)));

export class Sheet {
  #tiles = new Map();
  shown = false;

  constructor({ folders, view, ready }) {
    Object.assign(this, { folders, view, ready });
    this.choices = make("div.chips", { role: "group", "aria-label": "What stands side by side" });
    this.checkpoint = make("input", {
      type: "text", value: chosen.checkpoint, placeholder: "path of a .safetensors or .pth", id: "checkpoint", list: "weights", autocomplete: "off", spellcheck: "false", onchange: () => this.#weights(this.checkpoint.value.trim()),
    });
    this.all = button("Preview all", () => this.begin(), { image: "play" });
    this.tiles = make("div.tiles");
    this.element = make("div.sheet", {}, this.choices, make("div.choices", {}, make("label", { for: "checkpoint" }, "Checkpoint"), this.checkpoint, this.all), this.found = make("datalist", { id: "weights" }), this.tiles);
    onChange(["sheet", "checkpoint", "preset", "settings"], () => this.shown && this.#fill());
    onChange(["at", "input"], () => this.shown && this.clear());
  }

  /** Whether the sheet is looked at; what is at work is cancelled where it is not. */
  turn(on) {
    this.shown = on;
    if (on) {
      this.#fill();
      this.#search();
    } else for (const tile of this.#tiles.values()) tile.preview.stop();
  }

  /** Offer the files of weights that lie beside the film, and in the folders themselves. */
  async #search() {
    const places = new Set([...this.folders, chosen.input.replace(/[\\/][^\\/]*$/, "")]);
    const paths = [];
    for (const place of places) {
      try {
        const { path, files } = await server.folder(place);
        paths.push(...files.filter(({ name }) => /\.(safetensors|pth|pt|ckpt)$/i.test(name)).map(({ name }) => `${path}/${name}`));
      } catch { /* nothing is offered from there */ }
    }
    this.found.replaceChildren(...[...new Set(paths)].map((value) => make("option", { value })));
  }

  begin() {
    for (const tile of this.#tiles.values()) if (tile.preview.state !== "done" && tile.preview.state !== "running") tile.preview.begin();
  }

  clear() {
    for (const tile of this.#tiles.values()) {
      tile.preview.clear();
      this.#still(tile);
      tile.preview.follow();
    }
  }

  /** The frame as it is, until there is more. */
  async #still({ stage, preview }) {
    const of = `${chosen.input} ${chosen.at}`;
    try {
      const image = await picture(server.frameOf(chosen.input, chosen.at ?? 0), "The frame as it is");
      if (of === `${chosen.input} ${chosen.at}` && !preview.result) stage.show({ before: image, names: ["As it is"] });
    } catch { /* told where the film is looked at */ }
  }

  #offered() {
    const offered = [["bicubic", () => ({ model: "bicubic", ...shared() })]];
    for (const { name } of presets) offered.push([name, () => ({ preset: name, ...shared() })]);
    if (chosen.checkpoint) offered.push([chosen.checkpoint, () => ({ model: chosen.checkpoint, ...shared() })]);
    const now = JSON.stringify(given());
    if (!offered.some(([, settings]) => JSON.stringify(settings()) === now)) offered.push(["yours", given]);
    return offered;
  }

  #chosen() {
    return chosen.sheet ?? ["bicubic", "mini", ...(chosen.preset && chosen.preset !== "mini" ? [chosen.preset] : [])];
  }

  #weights(path) {
    choose({ checkpoint: path, sheet: [...this.#chosen().filter((name) => name !== chosen.checkpoint), ...(path ? [path] : [])] });
  }

  #fill() {
    const offered = this.#offered();
    const names = this.#chosen();
    this.choices.replaceChildren(...offered.map(([name]) => make("label.chip", { title: name },
      make("input", { type: "checkbox", checked: names.includes(name), onchange: (event) => choose({
        sheet: event.target.checked ? [...names, name] : names.filter((each) => each !== name) }) }),
      make("span", {}, nameOf({ preset: name })))));
    const wanted = offered.filter(([name]) => names.includes(name));
    for (const [name, tile] of this.#tiles) {
      if (wanted.some(([each]) => each === name)) continue;
      tile.preview.stop();
      this.view.leave(tile.stage.draw);
      this.#tiles.delete(name);
    }
    for (const [name, settings] of wanted) {
      if (this.#tiles.has(name)) continue;
      this.#tiles.set(name, this.#tile(name, settings));
      this.#still(this.#tiles.get(name));
    }
    const tiles = wanted.map(([name]) => this.#tiles.get(name));
    if (tiles.some((tile, index) => this.tiles.children[index] !== tile.element) || this.tiles.children.length !== tiles.length) {
      this.tiles.replaceChildren(...tiles.map((tile) => tile.element));
    }
    for (const tile of tiles) tile.preview.follow();
    for (const [name] of wanted) this.#mark(name);
    this.tiles.dataset.count = String(Math.min(tiles.length, 4));
    if (!tiles.length) this.tiles.replaceChildren(make("p.empty", {}, "Tick what shall stand side by side."));
  }

  #tile(name, settings) {
    const title = name === "yours" ? "your settings" : nameOf({ preset: name });
    const stage = new Stage({ view: this.view, label: title, divided: false });
    stage.element.setAttribute("aria-label", title);
    stage.element.setAttribute("role", "group");
    const element = make("article.tile", { "data-name": name });
    const preview = new Preview({
      kind: "frame", settings, ready: this.ready, doing: "Preview",
      show: async (result) => stage.show({ before: await picture(result.after, title) }),
      turned: ({ state }) => { element.dataset.state = state; },
    });
    const use = name === "bicubic" || name === "yours" ? null : button("Use this", () => this.#use(name), { label: `Use ${title}`, kind: "quiet" });
    element.append(make("div.head", {}, make("h2", {}, title), use), stage.element, preview.element);
    return { element, stage, preview, use };
  }

  #mark(name) {
    const { use } = this.#tiles.get(name);
    const model = chosen.settings.model;
    const used = name === model || (name === chosen.preset && !model);
    if (!use) return;
    use.disabled = used;
    write(use.firstChild, used ? "In use" : "Use this");
  }

  #use(name) {
    const settings = shared();
    if (name === chosen.checkpoint) choose({ preset: "", settings: { model: name, ...settings } });
    else choose({ preset: name, settings });
  }
}
