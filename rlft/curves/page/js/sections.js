// Shadows, waste, evaluations, failures, and what is behind the run.
import { card, turns } from "./card.js";
import { chartOf } from "./chart.js";
import { copyButton, el, svg } from "./dom.js";
import { count } from "./numbers.js";
import { tableOf } from "./tables.js";

export const shadows = (data) => {
  if (!data.shadows.length) return null;
  return el("section", { id: "shadows" }, el("h2", {}, "Shadows"), data.shadows.map((each) =>
    el("div", { class: "panel" }, el("h3", {}, `${each.name}: shadow (not trained on)`), el("p", {}, each.sentence), each.table ? tableOf(each.table) : null)));
};

const TONES = ["green", "grey", "red", "violet", "orange"];

export const waste = (data) => {
  if (!data.waste) return null;
  let from = 0;
  const pieces = data.waste.uses.map(([, share], i) => {
    const piece = svg("rect", { class: `fill c-${TONES[i]}`, x: `${100 * from}%`, width: `${100 * share}%`, y: 0, height: 16 });
    from += share;
    return piece;
  });
  return el("section", { id: "waste" }, el("h2", {}, "Where the rollout tokens went"), el("div", { class: "panel" },
    svg("svg", { class: "wastebar", width: "100%", height: 16, "aria-hidden": "true" }, pieces),
    el("div", { class: "legend" }, data.waste.uses.map(([label, , text], i) => el("span", {}, el("i", { class: `chip-color c-${TONES[i]}` }), `${text} ${label}`))),
    el("p", { class: "hint" }, `${count(data.waste.tokens)} rollout tokens${data.waste.sampled > data.waste.tokens ? ` that can be read, of ${count(data.waste.sampled)}` : ""}`)));
};

export const evaluations = (data, onstep) => {
  const observed = data.observed.heldout.map((text) => el("p", { class: "hint" }, text));
  if (!data.evaluations.length && !data.sets) return null;
  return el("section", { id: "evaluations" }, el("h2", {}, "Evaluations"),
    el("div", { class: "pair" }, data.evaluations.map((each) => el("div", { class: "panel" }, tableOf(each)))), observed,
    data.sets ? el("div", { class: "panel" }, tableOf(data.sets.table), data.sets.table.sentences.map((text) => el("p", { class: "hint" }, text))) : null,
    data.sets ? el("div", { class: "multiples" }, data.sets.charts.map((chart) => el("div", { class: "panel" }, chartOf(chart, { height: 150, small: true, onstep })))) : null);
};

const failedGroup = (group) => el("div", { class: "panel", "data-key": `group ${group.step}.${group.group}` }, el("h3", {}, group.task, el("span", { class: "muted" }, ` step ${group.step}, group ${group.group}`)),
  el("details", {}, el("summary", {}, "prompt"), group.messages ? turns(group.messages) : el("pre", {}, group.prompt)), group.samples.map((each) => card(each)));

export const failures = (data) => {
  const { failures: found, observed } = data;
  if (!found && !observed.training.length) return null;
  const kinds = found ? Object.entries(found.kinds).map(([kind, number]) => `${count(number)} ${kind}`).join(", ") : "";
  return el("section", { id: "failures" }, el("h2", {}, "Rollouts whose reward failed"),
    found ? el("p", { class: "hint" }, `The latest of ${kinds}; they are in no number above. Each has a program that repeats the call.`) : null,
    found ? found.groups.map(failedGroup) : null,
    observed.training.map((each) => el("div", { class: "panel", "data-key": `observed ${each.reward}` },
      el("h3", {}, `observed reward ${each.reward} failed on ${count(each.failed)} of ${count(each.rollouts)} samples`),
      el("p", { class: "hint" }, `It has weight 0, so nothing was trained on it; its curve is the mean over the other samples. First, in step ${each.first_step} on ${each.first_task} (${each.kind}):`),
      el("pre", {}, each.message),
      each.reproduce ? el("details", {}, el("summary", {}, "program that repeats it"), copyButton(each.reproduce), el("pre", {}, each.reproduce)) : null)));
};

export const behind = (data) => {
  const { events, event_count: number, config, provenance } = data.behind;
  const folded = (label, ...children) => el("details", { class: "panel" }, el("summary", {}, label), children);
  const rows = events.map((row) => row);
  const note = number > events.length ? `the last ${events.length} of ${count(number)}` : "";
  return el("section", { id: "behind" }, el("h2", {}, "Behind this run"),
    events.length ? folded(`Events (${count(number)})`, tableOf({ caption: note, head: ["Time", "Step", "What", ""], rows, numeric: [1], note: "" })) : null,
    folded("Config, as it was resolved", copyButton(config), el("pre", {}, config)),
    provenance ? folded("Provenance", copyButton(provenance), el("pre", {}, provenance)) : null);
};
