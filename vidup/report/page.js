"use strict";

// Two of a frame's pictures, one over the other. The divider follows the pointer, the finger and, by the range
// element that is laid over the pictures, the keyboard.
for (const view of document.querySelectorAll(".view")) {
  const stage = view.querySelector(".stage");
  const divider = view.querySelector("input");
  const images = [...stage.querySelectorAll("img")];
  const [left, right, zoom] = view.querySelectorAll("select");

  const show = () => {
    images.forEach((image, index) => {
      image.classList.toggle("left", String(index) === left.value);
      image.classList.toggle("right", String(index) === right.value);
    });
  };
  const place = (share) => {
    stage.style.setProperty("--at", `${100 * share}%`);
    divider.value = Math.round(100 * share);
    divider.setAttribute("aria-valuetext", `${divider.value} % ${left.selectedOptions[0].text}`);
  };
  const enlarge = () => {
    stage.classList.toggle("zoomed", zoom.value !== "fit");
    stage.style.setProperty("--zoom", zoom.value === "fit" ? "1" : zoom.value);
    measure();
  };
  const measure = () => {
    stage.classList.toggle("crisp", stage.clientWidth * devicePixelRatio > 1.01 * images[0].naturalWidth);
    stage.classList.toggle("small", stage.clientHeight < 120);
  };
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    place(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
  };

  let dragging = false;
  stage.addEventListener("pointerdown", (event) => {
    // Enlarged, a finger beside the grip moves the picture and not the divider.
    const pans = stage.classList.contains("zoomed") && event.pointerType === "touch" && !event.target.closest(".grip");
    if (event.button !== 0 || pans) return;
    dragging = true;
    stage.setPointerCapture(event.pointerId);
    divider.focus({ preventScroll: true });
    follow(event);
    if (event.pointerType === "mouse") event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => dragging && follow(event));
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    stage.addEventListener(end, () => { dragging = false; });
  }
  divider.addEventListener("input", () => place(divider.value / 100));
  for (const choice of [left, right]) choice.addEventListener("change", show);
  zoom.addEventListener("change", enlarge);
  addEventListener("resize", measure);
  images[0].decode().then(measure, measure);
  show();
  place(0.5);
}

// The numbers of a plot where it is pointed at, or where the arrow keys have come to.
const plots = JSON.parse(document.getElementById("readings").textContent);
for (const figure of document.querySelectorAll(".plot")) {
  const curves = plots[figure.dataset.plot];
  const chart = figure.querySelector(".chart");
  const cursor = figure.querySelector(".cursor");
  const time = figure.querySelector(".time");
  const told = figure.querySelectorAll(".keys output");
  let at = 0;

  const nearest = (places, share) => places.reduce(
    (best, place, index) => (Math.abs(place - share) < Math.abs(places[best] - share) ? index : best), 0);
  const read = (share) => {
    at = nearest(curves[0].at, share);
    const there = curves[0].at[at];
    cursor.setAttribute("d", `M${1000 * there} 0V200`);
    time.textContent = curves[0].time[at];
    curves.forEach((curve, index) => { told[index].textContent = curve.value[nearest(curve.at, there)]; });
  };
  const point = (event) => {
    const box = chart.getBoundingClientRect();
    read((event.clientX - box.left) / box.width);
  };
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    read(curves[0].at[Math.min(curves[0].at.length - 1, Math.max(0, at + moves[event.key]))]);
  });
}
