// The list of runs: fills in each one's verdict, and lets groups be ticked to compare them.
import { el, replace } from "./dom.js";

const lines = [...document.querySelectorAll("tr[data-line]")];

const fillIn = (row, line) => {
  replace(row.querySelector(".told"), el("span", { class: `verdictchip v-${line.kind}` }, line.word), el("p", { class: "hint" }, line.sentence));
  row.querySelector(".steps").textContent = line.steps;
  row.querySelector(".state").textContent = line.state;
};

const readAll = async () => {
  for (const row of lines) {  // one after the other: reading a run takes a processor
    try {
      const answer = await fetch(row.dataset.line);
      if (!answer.ok) throw new Error(await answer.text());
      fillIn(row, await answer.json());
    } catch (error) {
      replace(row.querySelector(".told"), el("span", { class: "note" }, String(error.message).slice(0, 300)));
    }
  }
  document.documentElement.dataset.ready = "yes";
};

const sides = ["a", "b"].map((side) => [...document.querySelectorAll(`input[name=${side}]`)]);
const submit = document.querySelector("button[type=submit]");
const showTicked = () => {
  const [before, after] = sides.map((boxes) => boxes.filter((tick) => tick.checked).map((tick) => tick.value));
  submit.disabled = !before.length || !after.length;
  document.getElementById("ticked").textContent = submit.disabled ? "Tick runs in A, the baseline, and in B: one on each side, or several seeds of one config."
    : `${after.join(", ")} against ${before.join(", ")}`;
};
sides.forEach((boxes, side) => boxes.forEach((tick, row) => tick.addEventListener("change", () => {
  if (tick.checked) sides[1 - side][row].checked = false;  // a run cannot be compared with itself
  showTicked();
})));
if (submit) showTicked();
readAll();
