// The page begins here: which of its three views is shown, and what they tell each other.

import { make, say } from "./elements.js";
import { percent } from "./words.js";
import { chosen, choose, forget } from "./chosen.js";
import { chooseView } from "./choose.js";
import { filmView } from "./film.js";
import { runsView } from "./runs.js";
import * as server from "./server.js";

const section = (name) => document.querySelector(`section[data-view="${name}"]`);

/** Ask until the server answers: it may be starting. */
async function begin() {
  for (;;) {
    try {
      return await server.start();
    } catch (fault) {
      if (fault instanceof server.Refused) throw fault;
      await server.pause(2000);
    }
  }
}

function show(views, name) {
  for (const [each, view] of Object.entries(views)) {
    const now = each === name;
    if (section(each).hidden === !now) continue;
    section(each).hidden = !now;
    if (now) view.shown?.();
    else view.left?.();
  }
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.dataset.view === (name === "choose" ? "film" : name);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function badge(runs) {
  const active = runs.filter((run) => run.state === "running" || run.state === "waiting");
  const element = document.querySelector(".badge");
  element.hidden = !active.length;
  const running = active.find((run) => run.state === "running");
  element.textContent = running ? percent(running.share ?? 0) : String(active.length);
  document.title = running ? `${percent(running.share ?? 0)} vidup` : "vidup";
  return active.length;
}

async function main() {
  const start = await begin();
  document.querySelector(".begins").remove();
  if (!chosen.preset && !chosen.settings.model) choose({ preset: start.preset ?? (start.presets.some(({ name }) => name === "mini") ? "mini" : start.presets[0]?.name ?? "") });
  const views = {};
  let taken = false;
  const route = () => {
    const wanted = location.hash.slice(1);
    show(views, wanted === "runs" ? "runs" : wanted === "choose" || !chosen.input ? "choose" : "film");
  };
  views.runs = runsView(section("runs"), { counted: (runs) => views.film.delivery.queue(badge(runs)) });
  views.film = filmView(section("film"), start, {
    ran: () => { location.hash = "#runs"; say("It is in the queue"); },
    lost: (line) => {
      forget(chosen.input);
      choose({ input: "" });
      location.hash = "#choose";
      route();
      if (taken) views.choose.tell(line); // else it is of an earlier visit, which may have had other folders
    },
  });
  views.choose = chooseView(section("choose"), start, () => {
    taken = true;
    if (location.hash === "#film") route();
    else location.hash = "#film";
  });
  addEventListener("hashchange", route);
  addEventListener("pagehide", () => views.film.left());
  addEventListener("pageshow", (event) => event.persisted && !section("film").hidden && views.film.shown());
  route();
  views.runs.ask();
}

main().catch((fault) => {
  document.querySelector(".begins")?.remove();
  document.querySelector("#main").append(make("p.alone.fault", { role: "alert" }, fault.message));
  throw fault;
});
