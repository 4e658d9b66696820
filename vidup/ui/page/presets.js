// The presets as cards, one of which is chosen.

import { make, button } from "./elements.js";
import { chosen, choose, onChange } from "./chosen.js";
import { lastOf } from "./words.js";

/** What the presets that ship with vidup are good for, in words for someone who has never seen them. */
const GOOD_FOR = {
  mini: "Small and quick: sharp edges and lettering. Comes with vidup, runs on any machine.",
  fast: "The full model at half the steps: invents detail. Wants a GPU.",
  balanced: "The full model as it is meant to be used: invents detail. Wants a GPU.",
  preview: "The full model in a hurry, to see what a prompt does.",
  reference: "The full model's own 75 steps: the slowest, to compare with.",
  x2: "Twice the size, by a model that works in latent space. Wants a GPU.",
};

const ORDER = ["mini", "fast", "balanced"];

/** All presets, in the order in which they are shown: those that matter first, one's own, the others. */
export let presets = [];
export const presetNamed = (name) => presets.find((each) => each.name === name);

/** Cards for all presets, the three that matter first. */
export class Presets {
  constructor(known) {
    this.element = make("fieldset.presets", {}, make("legend", {}, "Preset"));
    this.set(known);
    onChange(["preset", "settings"], () => this.mark());
  }

  set(known) {
    presets = [...known].sort((a, b) => place(a.name) - place(b.name));
    const cards = presets.map(({ name, line }) => {
      const input = make("input", { type: "radio", name: "preset", value: name, onchange: () => this.#take(name) });
      return make("label.preset", { title: name in GOOD_FOR ? line : name }, input, make("span.what", {},
        make("strong", {}, lastOf(name).replace(/\.toml$/, "")), make("span", {}, GOOD_FOR[name] ?? line)));
    });
    const more = cards.splice(ORDER.length);
    this.rest = make("details.rest", {}, make("summary", {}, `${more.length} more`), make("div", {}, more));
    this.element.replaceChildren(this.element.firstChild, ...cards, ...(more.length ? [this.rest] : []));
    this.mark();
  }

  mark() {
    for (const input of this.element.querySelectorAll("input")) {
      input.checked = input.value === chosen.preset;
      if (input.checked && this.rest.contains(input)) this.rest.open = true;
    }
  }

  #take(name) {
    // A preset brings its own model; all else that was set stays, as it does on the command line.
    const { model, ...settings } = chosen.settings;
    choose({ preset: name, settings });
  }
}

const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : name in GOOD_FOR ? 10 : 5);

/** A form that saves what is chosen as a preset of one's own. */
export function saving(save) {
  const name = make("input", { type: "text", placeholder: "a name, such as news-archive", "aria-label": "Name of the preset", required: true, pattern: "[\\w\\-. ]+", autocomplete: "off" });
  const told = make("p.told", { role: "status" });
  const replace = make("label.check", { hidden: true }, make("input", { type: "checkbox" }), "Replace it");
  const form = make("form.saving", {}, make("div.row", {}, name, make("button", { type: "submit" }, "Save")), replace, told);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    told.classList.remove("fault");
    try {
      const path = await save(name.value.trim(), replace.firstChild.checked);
      told.textContent = `Saved as ${path}`;
      replace.hidden = true;
      replace.firstChild.checked = false;
    } catch (fault) {
      told.textContent = fault.message;
      told.classList.add("fault");
      replace.hidden = !/exist|replace|overwrite/i.test(fault.message);
    }
  });
  return form;
}
