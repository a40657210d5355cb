// Without this script every picture is shown; only wiping, filtering and sliding need it.

for (const part of document.querySelectorAll("[data-needs-script]")) part.hidden = false;

const cards = [...document.querySelectorAll("#cards .card")];
let against = ""; // what is wiped over the student, in words

function wipe(card, percent) {
  pull(card.querySelector(".stack"), card.querySelector(".wipe"), percent, against);
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
  cover(stack);
  const slider = card.querySelector(".wipe");
  slider.addEventListener("input", () => wipe(card, Number(slider.value)));
  dragAcross(stack, (percent) => wipe(card, percent));
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
