// Tables, as they come with the data, and the values behind a chart.
import { el } from "./dom.js";
import { shown } from "./numbers.js";
import { withTerm } from "./terms.js";

const MOST = 400;

const cell = (tag, text, isNumber, children = null) => el(tag, { class: isNumber ? "n" : null, scope: tag === "th" ? "col" : null }, children ?? text);

export const tableOf = (data) => el("div", { class: "scroll" }, el("table", {},
  el("caption", {}, withTerm(data.caption)),
  el("thead", {}, el("tr", {}, data.head.map((text, i) => cell("th", text, data.numeric.includes(i), withTerm(text))))),
  el("tbody", {}, data.rows.map((row) => el("tr", {}, row.map((text, i) => cell("td", text, data.numeric.includes(i))))))),
  data.note ? el("p", { class: "hint" }, data.note) : null);

// The numbers that a chart draws, a line for each step.
export const valueTable = (chart) => {
  const marks = chart.marks.filter((mark) => mark.x);
  const steps = [...new Set(marks.flatMap((mark) => mark.x))].sort((a, b) => a - b);
  const places = marks.map((mark) => new Map(mark.x.map((step, i) => [step, i])));
  const kept = steps.length > MOST ? steps.filter((_, i) => i % Math.ceil(steps.length / MOST) === 0) : steps;
  const share = chart.axis === "share";
  const rows = kept.map((step) => [Number.isInteger(step) ? String(step) : step.toFixed(1), ...marks.map((mark, m) => {
    const i = places[m].get(step);
    if (i === undefined) return "";
    if (mark.texts) return mark.texts[i];
    const bounds = mark.low?.[i] != null ? ` [${shown(mark.low[i], share)}, ${shown(mark.high[i], share)}]` : "";
    return shown(mark.y[i], share) + bounds;
  })]);
  const note = kept.length < steps.length ? `${kept.length} of ${steps.length} rows` : "";
  return tableOf({ caption: "", head: ["step", ...marks.map((mark) => mark.name)], rows, numeric: [0, ...marks.map((_, i) => i + 1)], note });
};
