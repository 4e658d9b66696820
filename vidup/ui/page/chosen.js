// What is chosen: the film, the frame, the preset, the settings. It survives a reload, each tab has its own.

const NOTHING = {
  input: "",
  at: null, // seconds; null is a frame from the middle
  preset: "",
  settings: {}, // what differs from the preset
  output: "", // "" is what vidup proposes
  way: "frame", // "frame", "sheet" or "moving"
  sheet: null, // names of what stands side by side; null is the page's choice
  checkpoint: "", // a file of weights, for the sheet
  ticked: true, // whether previews follow the settings
};

const kept = (store, name) => {
  try {
    return JSON.parse(store.getItem(name)) ?? {};
  } catch {
    return {};
  }
};

/** Read it; change it with `choose` alone. */
export const chosen = { ...NOTHING, ...kept(localStorage, "vidup"), ...kept(sessionStorage, "vidup") };

const listeners = [];

/** Call `act` with what is chosen after any of `names` has changed. */
export function onChange(names, act) {
  listeners.push([new Set(names), act]);
}

/** Choose something else; what is equal to what was chosen changes nothing. */
export function choose(changes) {
  const changed = Object.keys(changes).filter((name) => JSON.stringify(changes[name]) !== JSON.stringify(chosen[name]));
  if (!changed.length) return;
  Object.assign(chosen, changes);
  for (const store of [localStorage, sessionStorage]) {
    try {
      store.setItem("vidup", JSON.stringify(chosen));
    } catch { /* a full store keeps what it had: the page goes on */ }
  }
  for (const [names, act] of listeners) if (changed.some((name) => names.has(name))) act(chosen);
}

/** Another film: its own frame, part and output; how it is upscaled stays as it was. */
export function chooseFilm(input) {
  const { start, duration, end, streams, drop_streams, ...settings } = chosen.settings;
  choose({ input, at: null, output: "", settings });
  if (input) remember(input);
}

/** The settings in the form that the server takes. */
export const given = () => ({ ...(chosen.preset ? { preset: chosen.preset } : {}), ...chosen.settings });

/** Films that were chosen before, the newest first. */
export const recent = () => Object.values(kept(localStorage, "vidupRecent"));

function remember(input) {
  const films = [input, ...recent().filter((each) => each !== input)].slice(0, 5);
  localStorage.setItem("vidupRecent", JSON.stringify(films));
}

/** Leave a film out of those that are offered again. */
export function forget(input) {
  localStorage.setItem("vidupRecent", JSON.stringify(recent().filter((each) => each !== input)));
}
