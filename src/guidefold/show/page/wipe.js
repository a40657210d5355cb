"use strict";
// One picture pulled over another: by a slider, or by dragging across them.

function cover(stack) {
  const below = stack.querySelector("img");
  below.draggable = false;
  const over = below.cloneNode();
  over.classList.add("over");
  over.alt = ""; // the same picture stands beside it, with its text
  below.after(over);
  return over;
}

function pull(stack, slider, percent, against) {
  stack.style.setProperty("--cut", `${percent}%`);
  stack.style.setProperty("--seen", percent > 0 ? 1 : 0);
  slider.value = percent;
  slider.setAttribute("aria-valuetext", `${percent}% ${against}`);
}

function dragAcross(stack, pulled) {
  let start = null; // where the pointer went down; null once it has moved, which begins the drag
  const drag = (event) => {
    if (!event.buttons) return;
    if (start !== null && Math.abs(event.clientX - start) < 3) return; // a click, so far
    start = null;
    stack.dataset.dragged = "";
    const { left, width } = stack.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - left) / width));
    pulled(Math.round(100 * share));
  };
  stack.addEventListener("pointerdown", (event) => {
    stack.setPointerCapture(event.pointerId); // the drag goes on beyond the picture's edge
    start = event.clientX;
    delete stack.dataset.dragged;
  });
  stack.addEventListener("pointermove", drag);
}
