// Elements of the page, each made by one expression.

const ICONS = {
  film: "M4 4h16v16H4zM8 4v16M16 4v16M4 9h4M4 15h4M16 9h4M16 15h4",
  folder: "M3 6.5A1.5 1.5 0 0 1 4.5 5H9l2 2.5h8.5A1.5 1.5 0 0 1 21 9v9a1.5 1.5 0 0 1-1.5 1.5h-15A1.5 1.5 0 0 1 3 18z",
  up: "M12 19V6M6.5 11.5 12 6l5.5 5.5",
  upload: "M12 16V4M7 9l5-5 5 5M4 16v2.5A1.5 1.5 0 0 0 5.5 20h13a1.5 1.5 0 0 0 1.5-1.5V16",
  play: "M8 5.2v13.6L18.6 12z",
  pause: "M8 5v14M16 5v14",
  stop: "M7 7h10v10H7z",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  back: "M14.5 5.5 8 12l6.5 6.5",
  on: "M9.5 5.5 16 12l-6.5 6.5",
  undo: "M5 5v5h5M5.6 10a7.5 7.5 0 1 1-1 5",
  sides: "M9 6l-5 6 5 6M15 6l5 6-5 6",
};

/**
 * Make an element: `make("button.main", { type: "button", onclick: run }, "Run")`.
 * A boolean sets or leaves out an attribute, a function listens, `null` children are left out.
 */
export function make(what, given = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(given)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "muted") element[name] = value;
    else if (typeof value === "boolean" && !name.startsWith("aria-")) element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A drawing beside a word; what it shows is said by the word. */
export function icon(name) {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  drawing.classList.add("icon");
  if (name === "play" || name === "stop") drawing.classList.add("filled");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  drawing.append(path);
  return drawing;
}

/** A button; `kind` is its class, `image` its drawing, `label` its name where the text does not say enough. */
export function button(text, act, { kind = "", image = "", label = "" } = {}) {
  return make(`button${kind ? `.${kind}` : ""}`, { type: "button", onclick: act, "aria-label": label || null, title: label || null },
    image ? icon(image) : null, text ? make("span", {}, text) : null);
}

/** Change what a button says, and its drawing. */
export function relabel(element, text, image) {
  write(element.querySelector("span"), text);
  if (element.dataset.image === image) return;
  element.dataset.image = image;
  element.querySelector(".icon").replaceWith(icon(image));
}

/** Set an element's text where it differs, so that nothing is announced or laid out anew without need. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A line for a fault, which `tell` shows. */
export const faultLine = () => make("p.fault", { role: "alert", hidden: true });

/** Show a text, or hide the element where there is none. */
export function tell(element, text) {
  element.hidden = !text;
  write(element, text);
}

/** Which of a few things is on: buttons in one frame, of which one is pressed. */
export function segments(label, choices, act) {
  const buttons = choices.map(([value, text, help]) =>
    make("button", { type: "button", "data-value": value, title: help ?? null, onclick: () => act(value) }, text));
  const element = make("div.segments", { role: "group", "aria-label": label }, buttons);
  element.mark = (value) => {
    for (const each of buttons) each.setAttribute("aria-pressed", String(each.dataset.value === String(value)));
  };
  return element;
}

let numbered = 0;
/** A name for an element that another refers to. */
export const named = (what) => `${what}-${(numbered += 1)}`;

const said = document.querySelector(".said");
let fading = 0;
/** Say something that has happened, for four seconds, to eyes and to screen readers. */
export function say(text) {
  said.textContent = text;
  said.classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => said.classList.remove("shown"), 4000);
}

/** A line of text that can be taken away: the command that does the same. */
export function copied() {
  const code = make("code", { tabindex: "0" });
  const element = make("div.command", {}, code, button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      say("Copied");
    } catch {
      getSelection().selectAllChildren(code);
      say("Selected: copy it with your keyboard");
    }
  }, { image: "copy", kind: "quiet" }));
  element.write = (line) => write(code, line);
  return element;
}
