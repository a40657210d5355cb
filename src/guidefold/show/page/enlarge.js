// Every picture opens large on a click, or on Enter; arrow keys go on to its neighbours.

const enlarged = document.createElement("dialog");
enlarged.id = "enlarged";
enlarged.setAttribute("aria-label", "Enlarged picture");
let row = []; // the pictures of the same card
let place = 0; // of the one that is shown

function enlarge(picture) {
  row = [...picture.closest("article").querySelectorAll("figure img:not(.over)")];
  turnTo(row.indexOf(picture));
  enlarged.showModal();
}

function turnTo(number) {
  place = (number + row.length) % row.length;
  const { src, alt, className, width, height } = row[place];
  const large = Object.assign(new Image(width, height), { src, alt, className });
  large.style.setProperty("--shape", row[place].naturalWidth / row[place].naturalHeight);
  large.addEventListener("click", () => enlarged.close());
  const words = document.createElement("p");
  words.textContent = alt;
  enlarged.querySelector("div").replaceChildren(large, words);
}

function tool(words, act) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "tool", textContent: words });
  button.addEventListener("click", () => act(button));
  return button;
}

for (const picture of document.querySelectorAll("article figure img")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "zoom";
  button.setAttribute("aria-label", `Enlarge ${picture.alt}`);
  picture.replaceWith(button);
  button.append(picture);
  const holder = button.closest(".stack") ?? button; // which has captured the pointer
  holder.addEventListener("click", () => {
    if ("dragged" in holder.dataset) delete holder.dataset.dragged;
    else enlarge(picture);
  });
}

const tools = document.createElement("div");
tools.className = "buttons-row";
tools.append(
  tool("Previous", () => turnTo(place - 1)),
  tool("Next", () => turnTo(place + 1)),
  tool("Close", () => enlarged.close()),
);
enlarged.append(document.createElement("div"), tools);
enlarged.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") turnTo(place + 1);
  if (event.key === "ArrowLeft") turnTo(place - 1);
});
document.body.append(enlarged);

// Code to copy

async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code); // to be copied by hand
    button.textContent = "Selected: press Ctrl+C";
  }
}

for (const code of document.querySelectorAll("[data-copy]")) code.after(tool("Copy", (button) => copy(code, button)));
