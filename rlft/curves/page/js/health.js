// Alarms with their samples, then every other metric as a small chart, the most surprising first.
import { chartOf } from "./chart.js";
import { button, el } from "./dom.js";
import { shown } from "./numbers.js";
import { set } from "./state.js";
import { withTerm } from "./terms.js";

const FIRST = 12;

const alarm = (each) => el("div", { class: `panel alarm a-${each.severity}`, "data-key": `alarm ${each.name}` },
  el("h3", {}, `${each.severity[0].toUpperCase()}${each.severity.slice(1)} alarm since step ${each.onset}: ${each.name}`),
  el("p", {}, `${each.evidence}. ${each.meaning} ${each.advice}`),
  each.samples.length ? el("details", { "data-key": "its samples" }, el("summary", {}, `${each.samples.length} samples that show it`), each.samples.map((sample) => el("div", {},
    el("p", { class: "hint" }, `${sample.id}, ${sample.tokens} tokens, reward ${shown(sample.reward)} `,
      button("its group", () => { set({ step: sample.step, task: sample.task, at: "samples" }); document.getElementById("samples")?.scrollIntoView(); }, { class: "quiet" })),
    el("pre", {}, sample.text)))) : null);

let placed = [];

// In the order of the data; while a run is followed, in that in which they were first shown, but for new alarms.
const inPlace = (charts) => {
  const place = new Map(placed.map((title, i) => [title, i]));
  const key = (chart) => (place.get(chart.title) ?? place.size) + (chart.alarm ? 0 : 1e6);
  const sorted = placed.length ? charts.toSorted((a, b) => key(a) - key(b)) : charts;
  placed = sorted.map((chart) => chart.title);
  return sorted;
};

export const health = (data, onstep) => {
  const { alarms, unable } = data.health;
  const charts = inPlace(data.health.charts);
  if (!alarms.length && !charts.length) return null;
  const small = (chart) => {
    const badge = chart.alarm ? el("span", { class: "badge t-bad" }, `alarm ${chart.alarm}`)
      : el("span", { class: "went" }, chart.went ?? "", chart.surprise >= 1 ? el("b", { title: "surprise: change in half widths of its 95 % interval" }, ` ${chart.surprise >= 99 ? "≫" : shown(chart.surprise)}×`) : null);
    return el("div", { class: "panel" }, chartOf(chart, { height: 130, small: true, onstep, badge }));
  };
  const rest = el("details", { class: "more" }, el("summary", {}, `${charts.length - FIRST} more charts`));
  rest.addEventListener("toggle", () => {
    if (rest.open && rest.childElementCount === 1) rest.append(el("div", { class: "multiples" }, charts.slice(FIRST).map(small)));
  });
  return el("section", { id: "health" }, el("h2", {}, "Health"), alarms.map(alarm),
    el("p", { class: "hint" }, withTerm("By surprise: charts that an alarm is about, then those that moved most beyond chance from the first to the last steps (×: in half widths of the 95 % interval).")),
    el("div", { class: "multiples" }, charts.slice(0, FIRST).map(small)), charts.length > FIRST ? rest : null,
    unable.length ? el("details", {}, el("summary", {}, `${unable.length} alarms that cannot be told`), el("ul", {}, unable.map(([name, reason]) => el("li", {}, el("b", {}, name), `: ${reason}`)))) : null);
};
