// The page begins here: which of its three views is shown, and what they tell each other.

import { make, say } from "./elements.js";
import { percent } from "./words.js";
import { chosen, choose, forget } from "./chosen.js";
import { chooseView } from "./choose.js";
import { Film } from "./film.js";
import { Runs, isActive } from "./runs.js";
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
  const active = runs.filter(isActive);
  const element = document.querySelector(".badge");
  element.hidden = !active.length;
  const running = active.find((run) => run.state === "running");
  element.textContent = running ? percent(running.share) : String(active.length);
  document.title = running ? `${percent(running.share)} vidup` : "vidup";
  return active.length;
}

async function main() {
  const start = await begin();
  document.querySelector(".begins").remove();
  if (!chosen.preset && !chosen.settings.model) choose({ preset: start.preset });
  const views = {};
  let taken = false;
  const route = () => {
    const wanted = location.hash.slice(1);
    show(views, wanted === "runs" ? "runs" : wanted === "choose" || !chosen.input ? "choose" : "film");
  };
  views.runs = new Runs((runs) => views.film.delivery.queue(badge(runs)));
  views.film = new Film(start, {
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
  for (const name of ["runs", "film"]) section(name).append(views[name].element);
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
