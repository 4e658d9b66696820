// Small pictures of films: two are asked for at a time, so that they hold nothing up.

import { make, icon } from "./elements.js";
import { frameOf } from "./server.js";

const waiting = [];
let busy = 0;

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    waiting.push(target);
    next();
  }
});

function next() {
  while (busy < 2 && waiting.length) {
    const box = waiting.shift();
    if (!box.isConnected) continue;
    busy += 1;
    const image = make("img", { alt: "", decoding: "async" });
    const over = () => { busy -= 1; next(); };
    image.addEventListener("load", () => { box.replaceChildren(image); over(); });
    image.addEventListener("error", over);
    image.src = box.source;
  }
}

/** A box of fixed size that fills with the frame at `at` seconds once it is in sight. */
export function thumbnail(input, at) {
  const box = make("span.thumbnail", {}, icon("film"));
  box.source = frameOf(input, at, 96);
  seen.observe(box);
  return box;
}
