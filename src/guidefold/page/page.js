"use strict";
// Without this script every picture is shown; only wiping, filtering and sliding need it.

for (const part of document.querySelectorAll("[data-needs-script]")) part.hidden = false;

const cards = [...document.querySelectorAll("#cards .card")];
let against = ""; // what is wiped over the student, in words

function wipe(card, percent) {
  const stack = card.querySelector(".stack");
  stack.style.setProperty("--cut", `${percent}%`);
  stack.style.setProperty("--seen", percent > 0 ? 1 : 0);
  const slider = card.querySelector(".wipe");
  slider.value = percent;
  slider.setAttribute("aria-valuetext", `${percent}% ${against}`);
}

function compareWith(choice) {
  against = choice.parentElement.textContent.trim();
  for (const card of cards) {
    card.querySelector(".over").src = card.querySelector(`[data-kind="${choice.value}"] img`).src;
    wipe(card, Number(card.querySelector(".wipe").value));
  }
}

function filterBy(choice) {
  const [name] = choice.split("=", 1);
  const wanted = choice.slice(name.length + 1);
  for (const card of cards) card.hidden = name !== "" && card.dataset[name] !== wanted;
  document.getElementById("none").hidden = cards.some((card) => !card.hidden);
}

for (const card of cards) {
  const stack = card.querySelector(".stack");
  const below = stack.querySelector("img");
  below.draggable = false;
  const over = below.cloneNode();
  over.classList.add("over");
  over.alt = ""; // the same picture stands beside it, with its text
  below.after(over);
  const slider = card.querySelector(".wipe");
  slider.addEventListener("input", () => wipe(card, Number(slider.value)));
  const drag = (event) => {
    if (!event.buttons) return;
    const { left, width } = stack.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - left) / width));
    wipe(card, Math.round(100 * share));
  };
  stack.addEventListener("pointerdown", (event) => {
    stack.setPointerCapture(event.pointerId); // the drag goes on beyond the picture's edge
    drag(event);
  });
  stack.addEventListener("pointermove", drag);
}

if (cards.length) {
  for (const choice of document.querySelectorAll('input[name="against"]')) {
    choice.addEventListener("change", () => compareWith(choice));
    if (choice.checked) compareWith(choice); // browsers keep a choice over a reload
  }
  const every = document.getElementById("all");
  every.addEventListener("input", () => cards.forEach((card) => wipe(card, Number(every.value))));
  const filter = document.getElementById("filter");
  filter.addEventListener("change", () => filterBy(filter.value));
  filterBy(filter.value);
}

for (const slider of document.querySelectorAll("[data-slides]")) {
  const slides = [...document.querySelectorAll(`.slide[data-of="${slider.dataset.slides}"]`)];
  const turn = () => {
    slides.forEach((slide, number) => { slide.hidden = number !== Number(slider.value); });
    slider.setAttribute("aria-valuetext", slides[slider.value].querySelector("h3").textContent);
  };
  slider.addEventListener("input", turn);
  turn();
}
