// The settings as a form: those that matter first, all others under their heads.

import { make, button, faultLine, named, tell, write } from "./elements.js";
import { spoken } from "./words.js";
import { chosen, choose, onChange } from "./chosen.js";
import { presetNamed } from "./presets.js";

const shownOf = (value) => (value === null || value === undefined ? "" : typeof value === "object"
  ? Object.entries(value).map(([key, each]) => `${key}=${each}`).join(" ") : String(value));

export class Settings {
  #fields = new Map();

  constructor({ fields, models }) {
    const first = fields.filter((field) => field.first).slice(0, 10);
    const groups = new Map();
    for (const field of fields) if (!first.includes(field)) groups.set(field.group, [...(groups.get(field.group) ?? []), field]);
    this.models = make("datalist", { id: "models" }, models.map(({ name, line }) => make("option", { value: name }, line)));
    this.fault = faultLine();
    this.reset = button("Reset all", () => choose({ settings: {} }), { image: "undo", kind: "quiet" });
    this.find = make("input", { type: "search", placeholder: "Find a setting", "aria-label": "Find a setting", oninput: () => this.#filter() });
    this.groups = [...groups].map(([title, own]) => {
      const count = make("span.count");
      const element = make("details.group", {}, make("summary", {}, make("span", {}, title[0].toUpperCase() + title.slice(1)), count), own.map((field) => this.#field(field)));
      return { element, count, own };
    });
    this.more = make("details.more", {}, make("summary", {}, "More settings"), this.find, this.groups.map((group) => group.element));
    this.element = make("section.settings", { "aria-label": "Settings" }, make("div.head", {}, make("h2", {}, "Settings"), this.reset),
      this.fault, make("div.first", {}, first.map((field) => this.#field(field))), this.more, this.models);
    onChange(["settings", "preset"], () => this.mark());
    this.mark();
  }

  /** What a field is where nothing is set: the preset's, or the default. */
  #default(field) {
    return presetNamed(chosen.preset)?.settings[field.name] ?? field.default;
  }

  #field(field) {
    const id = named(field.name);
    const control = this.#control(field, id);
    const undo = button("", () => this.#set(field, ""), { image: "undo", kind: "undo", label: `Reset ${spoken(field.name).toLowerCase()}` });
    const help = make("p.help", { id: `${id}-help` }, sentence(field.help));
    const fault = make("p.fault", { id: `${id}-fault`, hidden: true });
    control.setAttribute("aria-describedby", `${id}-help ${id}-fault`);
    const head = make("div.line", {}, make("label", { for: id }, spoken(field.name)), undo, control);
    const element = make("div.field", { "data-name": field.name }, head, help, fault);
    this.#fields.set(field.name, { field, control, element, fault });
    return element;
  }

  #control(field, id) {
    const listen = { id, name: field.name, onchange: (event) => this.#set(field, field.kind === "flag" ? event.target.checked : event.target.value.trim()) };
    if (field.kind === "flag") return make("input.switch", { type: "checkbox", role: "switch", ...listen });
    if (field.kind === "choice") return make("select", listen, field.choices.map((each) => make("option", { value: each }, each)));
    if (field.name === "prompt" || field.name === "negative_prompt") return make("textarea", { rows: "2", ...listen });
    const number = field.kind === "number" || field.kind === "integer";
    const list = field.name === "model" ? "models" : null;
    return make("input", { type: "text", inputmode: number && !field.choices.length ? "decimal" : null, list, autocomplete: "off", spellcheck: "false", ...listen });
  }

  #set(field, value) {
    const settings = { ...chosen.settings };
    const usual = this.#default(field);
    if (value === "" || shownOf(value) === shownOf(usual)) delete settings[field.name];
    else settings[field.name] = (field.kind === "number" || field.kind === "integer") && /^-?\d+(\.\d+)?$/.test(value) ? Number(value) : value;
    choose({ settings });
    this.mark();
  }

  /** Show what is set. */
  mark() {
    for (const { field, control, element } of this.#fields.values()) {
      const set = field.name in chosen.settings;
      const usual = this.#default(field);
      const value = set ? chosen.settings[field.name] : usual;
      element.classList.toggle("set", set);
      if (field.kind === "flag") control.checked = Boolean(value);
      else if (control !== document.activeElement || !set) control.value = field.kind === "choice" || set ? shownOf(value) : "";
      if (field.kind !== "flag" && field.kind !== "choice") control.placeholder = shownOf(usual) || empty(field);
    }
    for (const { own, count } of this.groups) {
      const many = own.filter((field) => field.name in chosen.settings).length;
      write(count, many ? `${many} set` : "");
    }
    this.reset.hidden = !Object.keys(chosen.settings).length;
  }

  /** Show a fault at the field that it names, else above all; "" shows none. */
  blame(text) {
    const name = /^(?:[\w ]*?: )?(\w+) = /.exec(text)?.[1];
    for (const [each, { fault, control }] of this.#fields) {
      const own = each === name;
      tell(fault, own ? text : "");
      control.setAttribute("aria-invalid", String(own));
      if (own) for (let around = fault.closest("details"); around; around = around.parentElement.closest("details")) around.open = true;
    }
    tell(this.fault, this.#fields.has(name) ? "" : text);
  }

  #filter() {
    const words = this.find.value.trim().toLowerCase();
    for (const { element, own } of this.groups) {
      const found = own.filter((field) => {
        const fits = !words || `${field.name} ${spoken(field.name)} ${field.help}`.toLowerCase().includes(words);
        this.#fields.get(field.name).element.hidden = !fits;
        return fits;
      });
      element.hidden = !found.length;
      element.open = Boolean(words) && found.length > 0;
    }
  }
}

/** A help line as a sentence; one that begins with a name is left as it is. */
const sentence = (help) => (/^[a-z]+ /.test(help) ? help[0].toUpperCase() + help.slice(1) : help);
const empty = (field) => ({ scale: "the model's own", crf: "the encoder's own", duration: "to the end" })[field.name] ?? "";
