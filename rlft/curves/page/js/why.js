// Why the reward moved: the stacked parts, the tree of parts with a search, a chart for each of the first.
import { chartOf } from "./chart.js";
import { el, replace } from "./dom.js";
import { count, shown } from "./numbers.js";
import { moved } from "./moved.js";
import { get, set, watch } from "./state.js";

const LINES = 60;

export const why = (data, onstep, live) => {
  const change = moved(data, live);
  if (!data.why) return change ? el("section", { id: "why" }, el("h2", {}, "Why"), change) : null;
  const { tree, stack, charts, width } = data.why;
  const body = el("tbody");
  const note = el("p", { class: "hint" });
  const search = el("input", { type: "search", placeholder: `search ${count(tree.length)} parts`, "aria-label": "Search the parts of the reward", value: get("part"),
    oninput: () => set({ part: search.value }) });
  const line = (part) => el("tr", {},
    el("td", { class: part.depth ? "child" : null }, part.name, part.role && part.role !== "trained" ? el("span", { class: "muted" }, ` ${part.role}`) : null),
    el("td", { class: "n" }, part.weight === undefined || part.role !== "trained" ? "" : `× ${part.weight}`),
    el("td", { class: "n" }, shown(part.start)), el("td", { class: "n" }, shown(part.end)),
    el("td", { class: "n" }, part.added === undefined ? "" : (part.added > 0 ? "+" : "") + shown(part.added)));
  const show = () => {
    const wanted = get("part").toLowerCase();
    const found = wanted ? tree.filter((part) => part.name.toLowerCase().includes(wanted)) : tree;
    replace(body, found.slice(0, LINES).map(line));
    note.textContent = found.length > LINES ? `${LINES} of ${count(found.length)} parts: those that added most to the change; search for the others` : "";
  };
  watch(["part"], show);
  show();
  const steps = `${width} steps`;
  const table = el("div", { class: "panel" }, el("div", { class: "scroll" }, el("table", {},
    el("caption", {}, "Parts of the reward, by what they added"),
    el("thead", {}, el("tr", {}, ["Part", "Weight", `First ${steps}`, `Last ${steps}`, "Added"].map((text, i) => el("th", { class: i ? "n" : null, scope: "col" }, text)))), body)),
    note, tree.length > 12 ? search : null);
  const more = tree.length > charts.length ? el("p", { class: "hint" }, `Charts of ${charts.length} of ${count(tree.length)} parts.`) : null;
  return el("section", { id: "why" }, el("h2", {}, "Why"), change,
    el("div", { class: "pair" }, stack ? el("div", { class: "panel" }, chartOf(stack, { height: 230, onstep })) : null, table),
    el("div", { class: "multiples" }, charts.map((chart) => el("div", { class: "panel" }, chartOf(chart, { height: 130, small: true, onstep, badge: el("span", { class: "went" }, chart.went) })))), more);
};
