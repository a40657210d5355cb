"use strict";
// Without this script the page still shows every prompt; only wiping and the sliders need it.

const cards = [...document.querySelectorAll(".card")];

function wipe(card, percent) {
  const stack = card.querySelector(".stack");
  stack.style.setProperty("--cut", `${percent}%`);
  stack.style.setProperty("--seen", percent > 0 ? 1 : 0);
  const slider = card.querySelector(".wipe");
  slider.value = percent;
  slider.setAttribute("aria-valuetext", `${percent} % wiped`);
}

function compareWith(kind) {
  for (const card of cards) {
    const source = card.querySelector(`[data-kind="${kind}"] img`);
    const over = card.querySelector(".over");
    over.src = source.src;
  }
}

for (const card of cards) {
  const below = card.querySelector(".stack img");
  const over = below.cloneNode();
  over.classList.add("over");
  over.alt = ""; // the same pictures stand beside it, with their texts
  below.after(over);
  const slider = card.querySelector(".wipe");
  slider.hidden = false;
  slider.addEventListener("input", () => wipe(card, Number(slider.value)));
}

if (cards.length) {
  const controls = document.getElementById("controls");
  controls.hidden = false;
  for (const choice of controls.querySelectorAll('input[name="against"]')) {
    choice.addEventListener("change", () => compareWith(choice.value));
    if (choice.checked) compareWith(choice.value); // browsers keep a choice over a reload
  }
  const every = document.getElementById("all");
  every.addEventListener("input", () => cards.forEach((card) => wipe(card, Number(every.value))));
  const filter = document.getElementById("filter");
  const show = () => {
    for (const card of cards) {
      const { category, wrong, differs } = card.dataset;
      card.hidden = !{ "": true, "?wrong": wrong === "true", "?differs": differs === "true" }[filter.value]
        && category !== filter.value;
    }
    document.getElementById("none").hidden = cards.some((card) => !card.hidden);
  };
  filter.addEventListener("change", show);
  show();
}

for (const slider of document.querySelectorAll("[data-slides]")) {
  const name = slider.dataset.slides;
  const slides = [...document.querySelectorAll(`.slide[data-of="${name}"]`)];
  const output = document.getElementById(`${name}-now`);
  const turn = () => {
    slides.forEach((slide, number) => { slide.hidden = number !== Number(slider.value); });
    const says = slides[Number(slider.value)].dataset.says;
    output.textContent = says;
    slider.setAttribute("aria-valuetext", says);
  };
  slider.addEventListener("input", turn);
  turn();
}
