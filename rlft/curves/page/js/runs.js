// The list of runs: fills in each one's verdict, and lets two be ticked to compare them.
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

const boxes = [...document.querySelectorAll("input[name=run]")];
const submit = document.querySelector("button[type=submit]");
const showTicked = () => {
  const ticked = boxes.filter((tick) => tick.checked);
  submit.disabled = ticked.length !== 2;
  document.getElementById("ticked").textContent = ticked.length === 2 ? `baseline: ${ticked[0].value}`
    : ticked.length > 2 ? "Tick two; groups of seeds are compared by rlft compare." : "The upper one is the baseline.";
};
for (const tick of boxes) tick.addEventListener("change", showTicked);
if (submit) showTicked();
readAll();
