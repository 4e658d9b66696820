// What the page asks of vidup's server, and what it does where that does not answer.

import { tell } from "./elements.js";

/** A fault that the server told in one line. */
export class Refused extends Error {}

const lost = document.querySelector(".lost");

async function ask(method, path, { body, signal } = {}) {
  const request = { method, signal, cache: "no-store", keepalive: method === "DELETE" }; // which a page that is closed still sends
  if (method !== "GET") request.headers = { "Content-Type": "application/json" };
  if (body !== undefined) request.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(`/api/${path}`, request);
  } catch (fault) {
    if (fault.name !== "AbortError") tell(lost, "vidup does not answer. Is it still running? Runs go on without it; start vidup ui again to see them.");
    throw fault;
  }
  let answer = {};
  try {
    answer = await response.json();
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
  }
  // A server that was started anew has another token: no answer of it can be had from here.
  tell(lost, /open the address/.test(answer.error) ? answer.error : "");
  if (!response.ok) throw new Refused(answer.error ?? `vidup answered ${response.status}`);
  return answer;
}

export const start = () => ask("GET", "start");
export const folder = (path, signal) => ask("GET", `folder?path=${encodeURIComponent(path)}`, { signal });
export const look = (body, signal) => ask("POST", "look", { body, signal });
export const savePreset = (body) => ask("POST", "preset", { body });
export const runs = () => ask("GET", "runs");
export const addRun = (body) => ask("POST", "runs", { body });
export const pauseRun = (id) => ask("POST", `runs/${id}/pause`, { body: {} });
export const resumeRun = (id) => ask("POST", `runs/${id}/resume`, { body: {} });
export const forgetRun = (id) => ask("DELETE", `runs/${id}`);

/** The address of a frame of a source, in a height of its own or as it is. */
export function frameOf(input, at, height) {
  const query = new URLSearchParams({ input, at: String(Math.round(at * 1e6) / 1e6) });
  if (height) query.set("height", height);
  return `/api/frame?${query}`;
}

/**
 * Make a preview and follow it: resolves with what is done, throws `Refused` where it failed.
 *
 * An abort of `signal` cancels the work in the server at once, and rejects with an `AbortError`.
 * @param {(state) => void} told  is given each state on the way.
 */
export async function preview(body, signal, told) {
  const { id } = await ask("POST", "preview", { body });
  const cancel = () => ask("DELETE", `preview/${id}`).catch(() => {});
  signal.addEventListener("abort", cancel, { once: true }); // a page that is closed does nothing after this event
  if (signal.aborted) cancel();
  for (;;) {
    signal.throwIfAborted();
    const state = await ask("GET", `preview/${id}`, { signal });
    if (state.state === "done") return state;
    if (state.state === "failed") throw new Refused(state.error);
    if (state.state === "stopped") throw new DOMException("stopped", "AbortError");
    told(state);
    await pause(250, signal);
  }
}

/** Wait; rejects at once where `signal` is aborted. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

/** Send a file into the first folder; resolves with its path there. */
export function upload(file, told, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api/upload?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.addEventListener("progress", (event) => event.lengthComputable && told(event.loaded / event.total));
    request.addEventListener("load", () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* no JSON: said below */ }
      if (request.status < 300) resolve(answer.path);
      else reject(new Refused(answer.error ?? `vidup answered ${request.status}`));
    });
    request.addEventListener("error", () => reject(new Refused("the upload broke off: is vidup still running?")));
    request.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(file);
  });
}
