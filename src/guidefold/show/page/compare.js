// Requests pictures and shows them. Whatever comes from elsewhere is written as text, never as HTML.

const QUICK = 3000; // milliseconds: a drawing that took less is made again as the dial moves
const POLL = 150;
const NAMES = { teacher: "CFG teacher", unguided: "unguided", student: "student" };
const KINDS = Object.keys(NAMES);
const token = new URLSearchParams(location.search).get("token");
const part = (id) => document.getElementById(id);
const number = (value) => String(Number(value.toPrecision(6)));
const dial = JSON.parse(part("dial").dataset.dial); // [strength, the teacher's guidance scale], rising

let drawing = null; // the id of what is drawn now
let again = false; // whether the dial has moved since
let took = Infinity; // milliseconds, of the last whole drawing
let shown = {}; // by kind: the id, address and words of the picture that is seen

// Talking to the server

async function ask(path, options = {}) {
  const headers = { "X-Guidefold-Token": token, ...options.headers };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server does not answer: 'guidefold compare' has ended. Start it again.");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error || `The server answered ${answer.status}.`);
}

const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// Showing

function say(text) { // to the eye and to the ear; steps are counted for the eye alone
  part("progress").textContent = text;
  part("news").textContent = text;
}

function complain(text) {
  part("fault").textContent = text;
  part("fault").hidden = !text;
}

const seconds = (value) => `${value < 100 ? value.toPrecision(3) : value.toFixed()} s`;

function time(kind, about) { // fused, the student makes the unguided teacher's passes and no others
  if (kind !== "student") return seconds(about.seconds);
  const fused = shown.unguided && !waits("unguided") ? `${seconds(shown.unguided.about.seconds)} fused, ` : "";
  return `${fused}${seconds(about.seconds)} loaded`;
}

function describe(kind, about) {
  const set = kind === "student" ? `strength ${number(about.strength)}` : `guidance ${number(about.guidance)}`;
  const bold = document.createElement("b");
  bold.textContent = NAMES[kind];
  return [bold, `${set}, ${number(about.passes)} passes, ${time(kind, about)}`];
}

function image(about, alt, address) {
  const picture = new Image(about.width, about.height);
  picture.src = address;
  picture.alt = alt;
  picture.draggable = false;
  picture.classList.toggle("small", Math.max(about.width, about.height) <= 128);
  return picture;
}

async function show(kind, about, wish) {
  const data = await (await ask(`pictures/${about.id}`)).blob();
  if (shown[kind]) URL.revokeObjectURL(shown[kind].address);
  const alt = `${NAMES[kind]}: ${wish.prompt}`;
  shown[kind] = { id: about.id, address: URL.createObjectURL(data), about, alt };
  const figure = document.querySelector(`[data-kind="${kind}"]`);
  const place = figure.querySelector(".stack, .frame");
  place.style.setProperty("--shape", `${about.width} / ${about.height}`);
  place.replaceChildren(image(about, alt, shown[kind].address));
  figure.classList.remove("waiting");
  for (const drawn of Object.keys(shown)) { // the student's time is known with the unguided one's
    const caption = document.querySelector(`[data-kind="${drawn}"] figcaption`);
    caption.replaceChildren(...describe(drawn, shown[drawn].about));
  }
  part("result").hidden = false;
  lay();
}

function against() {
  return document.querySelector('[name="against"]:checked').value;
}

function lay() { // the chosen picture over the student's, where both are of the same wish
  const stack = document.querySelector(".stack");
  stack.querySelector(".over")?.remove();
  const other = shown[against()];
  const ready = ["student", against()].every((kind) => shown[kind] && !waits(kind));
  if (ready) {
    const over = image(other.about, "", other.address); // beside it stands the same one, with its text
    over.classList.add("over");
    stack.append(over);
  }
  part("wipe").disabled = !ready;
  wipe(ready ? Number(part("wipe").value) : 0, ready);
}

function waits(kind) {
  return document.querySelector(`[data-kind="${kind}"]`).classList.contains("waiting");
}

function wipe(percent, ready = !part("wipe").disabled) {
  if (!ready) {
    document.querySelector(".stack").style.setProperty("--seen", 0);
    return;
  }
  pull(document.querySelector(".stack"), part("wipe"), percent, NAMES[against()]);
}

// Drawing

function wanted() {
  return {
    prompt: part("prompt").value.trim(),
    seed: Number(part("seed").value),
    strength: dial[Number(part("dial").value)][0],
  };
}

async function draw() {
  if (!part("wish").reportValidity()) return;
  if (drawing !== null) {
    again = true;
    return;
  }
  const wish = wanted();
  const began = performance.now();
  drawing = "";
  complain("");
  say("Drawing");
  busy(true);
  for (const kind of KINDS) document.querySelector(`[data-kind="${kind}"]`).classList.add("waiting");
  lay();
  part("title").textContent = `${wish.prompt} (seed ${wish.seed})`;
  try {
    const headers = { "Content-Type": "application/json" };
    const begun = await ask("drawings", { method: "POST", headers, body: JSON.stringify(wish) });
    drawing = (await begun.json()).id;
    part("stop").disabled = false;
    if (await watch(wish)) took = performance.now() - began;
  } catch (error) {
    complain(error.message);
    say("");
  }
  drawing = null;
  busy(false);
  if (again) draw();
}

async function watch(wish) { // until the drawing has ended; whether it is whole
  const seen = new Set();
  for (;;) {
    const now = await (await ask(`drawings/${drawing}`)).json();
    for (const kind of Object.keys(now.pictures)) {
      if (seen.has(kind)) continue;
      await show(kind, now.pictures[kind], wish);
      seen.add(kind);
    }
    part("steps").max = now.total;
    part("steps").value = now.done;
    if (now.state !== "drawing") {
      if (now.message) complain(now.message);
      say(now.state === "done" ? "Drawn." : now.state === "stopped" ? "Stopped." : "");
      return now.state === "done";
    }
    part("progress").textContent = `Drawing, step ${now.done} of ${now.total}`;
    await wait(POLL);
  }
}

function busy(is) {
  part("draw").disabled = is;
  part("steps").hidden = !is;
  if (is) again = false;
  else part("stop").disabled = true;
}

// Controls

function turn() {
  const [strength, guidance] = dial[Number(part("dial").value)];
  const text = `strength ${number(strength)} = guidance ${number(guidance)}`;
  part("stands").textContent = text;
  part("dial").setAttribute("aria-valuetext", text);
}

for (const hidden of document.querySelectorAll("[data-needs-script]")) hidden.hidden = false;
const start = part("dial").getAttribute("value"); // a smaller max has cut it off
part("dial").max = dial.length - 1;
part("dial").value = start;
turn();
part("dial").addEventListener("input", turn);
part("dial").addEventListener("change", () => { if (took < QUICK) draw(); });
part("another").addEventListener("click", () => { part("seed").value = Math.floor(Math.random() * 2 ** 31); });
part("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  draw();
});
part("wish").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
part("stop").addEventListener("click", async () => {
  again = false;
  await ask(`drawings/${drawing}`, { method: "DELETE" }).catch((error) => complain(error.message));
});
part("wipe").addEventListener("input", () => wipe(Number(part("wipe").value)));
dragAcross(document.querySelector(".stack"), (percent) => wipe(percent));
for (const choice of document.querySelectorAll('[name="against"]')) choice.addEventListener("change", lay);
