// Held-out tasks: what the policy answered before training and what it answers now.
import { card, turns } from "./card.js";
import { button, el, replace } from "./dom.js";
import { applyFolds } from "./folds.js";
import { get, set, watch } from "./state.js";

export const heldout = (data) => {
  const found = data.heldout;
  if (!found || !found.pairs.length) return null;
  const list = el("div", { class: "list", role: "listbox", "aria-label": "Held-out tasks", tabindex: 0 });
  const detail = el("div", { class: "detail" });
  const kinds = Object.entries(found.counts);
  const pairs = () => found.pairs.filter((pair) => !get("moved") || pair.kind === get("moved"));
  const current = () => pairs().find((pair) => pair.task === get("pair")) ?? pairs()[0];
  const show = () => {
    replace(list, pairs().map((pair) => el("button", { type: "button", role: "option", tabindex: -1, "data-key": pair.task, "aria-selected": String(pair === current()), onclick: () => set({ pair: pair.task }) },
      el("span", { class: "rowhead" }, el("span", {}, pair.kind), el("span", { class: "n" }, `${pair.before} → ${pair.after}`)), el("span", { class: "task" }, pair.task))));
    const pair = current();
    if (!pair) { replace(detail, el("p", { class: "muted" }, "No such task is here.")); return; }
    detail.dataset.key = pair.task;
    replace(detail, el("header", {}, el("h3", {}, pair.task), el("span", { class: "muted" }, `${pair.kind}: ${pair.before} → ${pair.after}`)),
      el("div", { class: "prompt" }, el("div", { class: "hint" }, "Prompt"), el("pre", {}, pair.prompt),
        pair.messages.length > 1 ? el("details", {}, el("summary", {}, "prompt in full"), turns(pair.messages)) : null),
      el("div", { class: "side two" }, pair.samples.map((sample, i) => el("div", {}, el("div", { class: "hint" }, found.labels[i]), card(sample)))));
  };
  watch(["pair", "moved"], () => { show(); applyFolds(); });
  show();
  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const known = pairs();
    set({ pair: known[Math.max(0, Math.min(known.length - 1, known.indexOf(current()) + by))]?.task });
    list.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
  });
  const filters = kinds.map(([kind, number]) => {
    const node = button(`${number} ${kind}`, () => set({ moved: get("moved") === kind ? null : kind, pair: null }), { class: "filter", "aria-pressed": "false" });
    const mark = () => node.setAttribute("aria-pressed", String(get("moved") === kind));
    watch(["moved"], mark);
    mark();
    return node;
  });
  return el("section", { id: "heldout" }, el("h2", {}, "Held out, before and after"),
    el("div", { class: "filters" }, filters),
    el("p", { class: "hint" }, `Showing ${found.pairs.length} of ${found.total} tasks, in turn of each kind; one sample of each. Low and high: below the mean after training, or not.`),
    el("div", { class: "browser panel" }, list, detail));
};
