// The first screen's words: the run, the decision and why, four chips that open their evidence.
import { button, copyButton, el, replace } from "./dom.js";
import { intervalBar } from "./interval_bar.js";
import { get, set, watch } from "./state.js";
import { withTerm } from "./terms.js";

export const header = (data, live) => el("header", { class: "top" },
  el("div", { class: "title" }, live ? el("a", { class: "back", href: "../../" }, "runs") : null, el("h1", {}, data.name),
    el("span", { class: "state" }, data.state), live),
  el("dl", { class: "facts" }, data.facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value)))));

export const decision = (data) => {
  const found = data.verdict;
  const [first, ...others] = found.reasons;
  const line = (reason) => el("li", { class: `w-${reason.weight}` }, el("b", {}, { for: "for", against: "against", doubt: "doubt", note: "note" }[reason.weight]), el("span", {}, reason.says));
  const rest = others.length ? el("details", { class: "reasons", "data-key": "reasons" }, el("summary", {}, others.length === 1 ? "one more reason" : `${others.length} more reasons`),
    el("ul", {}, others.map(line)),
    el("p", { class: "hint" }, "In brackets: 95 % intervals where nothing else is said, with the task as the unit. The last evaluation counts, not the best one.")) : null;
  return el("section", { "data-key": "decision", class: `panel decision v-${found.kind}`, "aria-label": "Decision" },
    el("div", { class: "words" },
      el("p", { class: "word" }, found.word),
      el("p", { class: "sentence" }, found.sentence),
      first ? el("ul", {}, line(first)) : null, rest, data.gate ? gate(data.gate) : null),
    data.bar ? intervalBar(data.bar, found.effect) : null);
};

const gate = (told) => el("details", { class: "gate" }, el("summary", {}, "copy as a gate"),
  el("div", { class: "command" }, el("code", {}, told.command), copyButton(told.command)), el("p", { class: "hint" }, told.says));

const SIGNS = { good: "✓", bad: "✕", unsure: "!", none: "·" };

// `sections`: ids of those that the page has.
export const chips = (data, sections) => {
  const evidence = el("div", { class: "panel evidence", hidden: true, id: "evidence", role: "region", "aria-live": "polite" });
  const buttons = data.chips.map((chip) => button([
    el("span", { class: "sign", "aria-hidden": "true" }, SIGNS[chip.tone]),
    el("span", { class: "label" }, chip.label), el("strong", {}, chip.value),
  ], () => set({ chip: get("chip") === chip.id ? null : chip.id }), { class: `chip t-${chip.tone}`, "aria-controls": "evidence", "aria-expanded": "false", "data-chip": chip.id, "data-key": chip.id }));
  const show = () => {
    const open = data.chips.find((chip) => chip.id === get("chip"));
    buttons.forEach((node, i) => node.setAttribute("aria-expanded", String(data.chips[i] === open)));
    evidence.hidden = !open;
    if (!open) return;
    replace(evidence, el("h3", {}, `${open.label} ${open.label.endsWith("?") ? "" : "– "}${open.value}`),
      el("ul", {}, open.evidence.map((text) => el("li", {}, withTerm(text)))),
      sections.includes(open.section) ? button("show more", () => { set({ at: open.section }); document.getElementById(open.section).scrollIntoView(); }, { class: "quiet" }) : null);
  };
  watch(["chip"], show);
  show();
  return [el("section", { class: "chips", "aria-label": "Checks" }, buttons), evidence];
};

export const tiles = (data) => el("section", { class: "tiles" }, data.tiles.map((tile) =>
  el("div", {}, el("span", {}, withTerm(tile.label)), el("strong", {}, tile.value), el("span", {}, tile.remark))));
