// Choose a film: from the folders of this machine, by dropping it, or by its path.

import { make, icon, button, faultLine, tell, write } from "./elements.js";
import { bytes, lastOf, percent } from "./words.js";
import { chosen, chooseFilm, forget, recent } from "./chosen.js";
import { thumbnail } from "./thumbnails.js";
import * as server from "./server.js";

const STEPS = [
  ["Choose a film", "A video or a picture, of this machine."],
  ["Look at it", "One frame, two seconds, or several presets side by side."],
  ["Run it", "In the background: closing this page loses nothing."],
];

/** Build the view. `done` is called once a film is chosen, `start` is what the server told at the start. */
export function chooseView(element, start, done) {
  const fault = faultLine();
  const path = make("input", {
    type: "text", id: "path", autocomplete: "off", spellcheck: "false", placeholder: `${start.folders[0]}/film.mp4`,
  });
  const file = make("input", { type: "file", id: "file", class: "hidden-file", accept: "video/*,image/*,.mkv,.ts,.mxf", onchange: () => send(file.files[0]) });
  const bar = make("progress", { max: "1", value: 0, "aria-label": "Upload" });
  const barText = make("span");
  const sending = make("div.sending", { hidden: true }, bar, barText, button("Cancel", () => uploading?.abort(), { kind: "quiet" }));
  const listing = make("div.listing");
  const again = make("div.again");
  const steps = make("ol.steps", {}, STEPS.map(([what, more]) => make("li", {}, make("strong", {}, what), make("span", {}, more))));
  let uploading = null;

  const take = (input) => {
    tell(fault, "");
    chooseFilm(input);
    done();
  };

  async function send(what) {
    if (!what) return;
    tell(fault, "");
    uploading?.abort();
    uploading = new AbortController();
    sending.hidden = false;
    try {
      take(await server.upload(what, (share) => {
        bar.value = share;
        write(barText, `${what.name}: ${percent(share)} of ${bytes(what.size)}`);
      }, uploading.signal));
    } catch (refusal) {
      if (refusal.name !== "AbortError") tell(fault, refusal.message);
    }
    sending.hidden = true;
    file.value = "";
  }

  const form = make("form.path", { onsubmit: (event) => { event.preventDefault(); if (path.value.trim()) open(path.value.trim()); } },
    make("label", { for: "path" }, "Path"), path, make("button", { type: "submit" }, "Open"));

  /** A path that was typed: a folder is shown, anything else is taken for a film. */
  async function open(typed) {
    try {
      await show(typed);
    } catch {
      take(typed);
    }
  }

  const drop = make("label.drop", { for: "file" }, icon("upload"),
    make("span", {}, make("strong", {}, "Drop a film here"), " or ", make("u", {}, "pick one"), " to copy it into ", make("code", {}, lastOf(start.folders[0]))));

  let here = "";
  let asking = null;
  async function show(where) {
    asking?.abort();
    asking = new AbortController();
    const found = await server.folder(where, asking.signal);
    listing.replaceChildren(...rows(found));
    here = found.path;
  }

  const go = (where) => show(where).catch((refusal) => refusal.name !== "AbortError" && tell(fault, refusal.message));

  function rows(found) {
    const join = (name) => `${found.path.replace(/[\\/]$/, "")}/${name}`;
    const films = found.files.filter((each) => each.video);
    const others = found.files.length - films.length + found.left;
    const pick = (each) => make("li", {}, make("button.row.pick", { type: "button", onclick: () => take(join(each.name)) },
      thumbnail(join(each.name), 1), make("span.name", {}, each.name), make("span.dim", {}, bytes(each.size))));
    const items = [
      ...found.folders.map((name) => make("li", {}, button(name, () => go(join(name)), { kind: "row", image: "folder" }))),
      ...films.map(pick),
    ];
    return [
      make("div.place", {},
        found.parent === null ? null : button("", () => go(found.parent), { kind: "quiet", image: "up", label: "The folder above" }),
        make("span.crumb", { title: found.path }, found.path),
        start.folders.length > 1 ? make("select", { "aria-label": "Folder", onchange: (event) => go(event.target.value) },
          start.folders.map((each) => make("option", { value: each, selected: found.path.startsWith(each) }, each))) : null),
      items.length ? make("ul", {}, items) : make("p.empty", {}, "No film in this folder."),
      others ? make("p.dim.rest", {}, `${others} other ${others === 1 ? "file" : "files"} not shown`) : null,
    ].filter(Boolean);
  }

  function offerAgain() {
    const films = recent();
    steps.hidden = films.length > 0;
    again.hidden = !films.length;
    again.replaceChildren(make("h2", {}, "Chosen before"), make("ul", {}, films.map((each) => make("li", {},
      make("button.row.pick", { type: "button", onclick: () => take(each), title: each },
        thumbnail(each, 1), make("span.name", {}, lastOf(each))),
      button("", () => { forget(each); offerAgain(); }, { kind: "quiet", image: "close", label: `Take ${lastOf(each)} off this list` })))));
  }

  element.append(make("div.choose", {},
    make("div.hello", {},
      make("h1", {}, "Choose a film to upscale"),
      make("p", {}, "You will see a frame before and after, and how long the whole film takes, before anything runs.")),
    fault,
    make("div.ways", {}, make("div.card", {}, form, listing), make("div.beside", {}, file, drop, sending, again, steps))));

  // A file may be dropped anywhere on the page.
  let over = 0;
  const dragged = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const count = (by) => (event) => { if (dragged(event)) document.body.classList.toggle("dropping", (over += by) > 0); };
  addEventListener("dragenter", count(1));
  addEventListener("dragleave", count(-1));
  addEventListener("dragover", (event) => dragged(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    over = 0;
    document.body.classList.remove("dropping");
    location.hash = "#choose";
    send(event.dataTransfer.files[0]);
  });

  return {
    shown() {
      offerAgain();
      if (chosen.input) path.value = chosen.input;
      go(here || start.folders[0]);
    },
    tell: (text) => tell(fault, text),
  };
}
