// The samples: a list of groups with filters and a search, and the chosen group side by side.
import { card, turns } from "./card.js";
import { button, el, replace } from "./dom.js";
import { applyFolds } from "./folds.js";
import { count, shown } from "./numbers.js";
import { get, set, watch } from "./state.js";

const bars = (group) => {
  const rewards = group.samples.map((each) => (each.outcome === "score" ? each.reward : null));
  const known = rewards.filter((each) => each !== null);
  const [low, high] = [Math.min(0, ...known), Math.max(...known, 0)];
  const texts = group.samples.map((each) => (each.outcome === "score" ? shown(each.reward) : each.outcome));
  return el("span", { class: "minibars", role: "img", "aria-label": `rewards ${texts.join(", ")}`, title: `rewards ${texts.join(", ")}` }, rewards.map((reward) => {
    const bar = el("i", { class: reward === null ? "none" : null });
    bar.style.height = `${reward === null ? 14 : 2 + 14 * ((reward - low) / (high - low || 1))}px`;
    return bar;
  }));
};

const keyOf = (group) => `${group.step}.${group.group}`;

export const samples = (source) => {
  const list = el("div", { class: "list", role: "listbox", "aria-label": "Groups of samples", tabindex: 0 });
  const detail = el("div", { class: "detail", "aria-live": "polite" });
  const told = el("p", { class: "hint" });
  const filter = () => ({ step: get("step"), task: get("task"), q: get("q"), kind: get("kind") });
  let groups = [];
  let next = null;
  let latest = 0;
  let listed = source.total;
  let isPaged = false;

  const current = () => groups.find((group) => keyOf(group) === get("group")) ?? groups[0];

  const showDetail = () => {
    const group = current();
    for (const row of list.children) row.setAttribute?.("aria-selected", String(row.dataset.key === (group && keyOf(group))));
    if (!group) { replace(detail, el("p", { class: "muted" }, "No group of samples fits.")); return; }
    detail.dataset.key = keyOf(group);
    const others = groups.filter((each) => each.task === group.task && each !== group);
    const more = group.size > group.samples.length ? `, ${group.samples.length} of ${group.size} shown, spread by rank of reward` : "";
    replace(detail,
      el("header", {}, el("h3", {}, group.task), el("span", { class: "muted" }, `step ${group.step}, group ${group.group}${more}`),
        get("task") ? button("all tasks", () => set({ task: null }), { class: "quiet" })
          : button(others.length || source.live ? "this task through time" : "only this task", () => set({ task: group.task, step: null }), { class: "quiet" })),
      el("div", { class: "prompt" }, el("div", { class: "hint" }, "Prompt"), el("pre", {}, group.prompt),
        group.messages ? el("details", {}, el("summary", {}, "prompt in full"), turns(group.messages)) : null,
        el("p", { class: "hint" }, `Answer: ${group.answer}`)),
      el("div", { class: "side" }, group.samples.map((each) => card(each, get("q")))));
    const wanted = get("sample");
    if (wanted) detail.querySelector(`[data-index="${Number(wanted)}"]`)?.classList.add("chosen");
    applyFolds();
  };

  const row = (group) => el("button", {
    type: "button", role: "option", "data-key": keyOf(group), "aria-selected": "false", tabindex: -1,
    onclick: () => { set({ group: keyOf(group), sample: null }); if (innerWidth < 760) detail.scrollIntoView(); },
  }, el("span", { class: "rowhead" }, el("span", {}, `step ${group.step}`), bars(group)),
    el("span", { class: "task" }, group.task), (group.why ?? []).map((each) => el("span", { class: "tag" }, each)));

  const load = async (more = false) => {
    const turn = (latest += 1);
    let found;
    try {
      found = await source.groups(filter(), more ? next : "");
    } catch (error) {
      told.textContent = `The server did not answer: ${error.message}`;
      return;
    }
    if (turn !== latest) return;
    source.total = listed = found.total ?? source.total;
    groups = more ? [...groups, ...found.groups] : found.groups;
    next = found.next;
    replace(list, groups.map(row), next ? button("more", () => load(true), { class: "quiet" }) : null);
    const held = groups.reduce((sum, group) => sum + group.samples.length, 0);
    const scope = source.live ? `${count(source.total)} rollouts are stored; ${count(held)} are listed${next ? ", more below" : ""}.`
      : `Showing ${count(source.shown)} of ${count(source.total)} rollouts: those of alarms, the best, the worst and the failed, some tasks through time, then a draw from every stretch of the run and kind of group. ${held < source.shown ? `${count(held)} fit.` : ""} rlft view shows all.`;
    const asked = get("step");
    const near = asked && groups.length && String(groups[0].step) !== asked ? ` The nearest to step ${asked} that is here is step ${groups[0].step}.` : "";
    told.textContent = scope + near + (found.searched ?? "");
    isPaged = more;
    newer.hidden = true;
    showDetail();
  };

  const search = el("input", { type: "search", placeholder: "search texts", "aria-label": "Search the samples", value: get("q") });
  let pause = 0;
  search.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(() => { pause = 0; set({ q: search.value }); }, 200); });
  const KINDS = { "": "all groups", differ: "rewards differ", alike: "rewards alike", failed: "failed" };
  const kind = el("select", { "aria-label": "Which groups", onchange: () => set({ kind: kind.value }) }, Object.entries(KINDS).map(([value, label]) => el("option", { value }, label)));
  kind.value = get("kind");
  const step = el("input", { type: "number", placeholder: "step", "aria-label": "Step", min: 0, value: get("step") || null, onchange: () => set({ step: step.value }) });
  const clear = button("clear", () => { clearTimeout(pause); pause = 0; set({ q: null, kind: null, step: null, task: null, group: null, sample: null }); }, { class: "quiet" });
  const newer = button("", () => load(), { class: "quiet", hidden: true });
  const task = el("span", { class: "tag" });
  const showFilters = () => {
    if (!pause && search.value !== get("q")) search.value = get("q");
    kind.value = get("kind");
    if (document.activeElement !== step) step.value = get("step");  // it may be half typed
    task.textContent = get("task") ? `task ${get("task")}` : "";
    clear.hidden = !["q", "kind", "step", "task"].some(get);
  };
  watch(["q", "kind", "step", "task"], () => { showFilters(); load(); });
  watch(["group", "sample"], showDetail);

  const move = (by) => {
    const at = Math.max(0, Math.min(groups.length - 1, groups.indexOf(current()) + by));
    if (!groups[at]) return;
    set({ group: keyOf(groups[at]), sample: null });
    list.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
  };
  const sampleAt = (by) => {
    const cards = [...detail.querySelectorAll(".sample")];
    const at = Math.max(0, Math.min(cards.length - 1, cards.findIndex((each) => each.dataset.index === get("sample")) + by));
    if (!cards[at]) return;
    set({ sample: cards[at].dataset.index });
    const chosen = detail.querySelector(".sample.chosen");
    chosen?.focus({ preventScroll: true });
    chosen?.scrollIntoView({ block: "nearest" });
  };
  // What is read stays; only a list that nobody looks at or has chosen from is read again.
  const isUsed = () => {
    const { top, bottom } = section.getBoundingClientRect();
    return isPaged || get("group") || get("sample") || section.contains(document.activeElement) || (top < innerHeight && bottom > 0);
  };
  const section = el("section", { id: "samples" }, el("h2", {}, "Samples"),
    el("div", { class: "filters" }, search, kind, step, task, clear), told, newer,
    el("div", { class: "browser panel" }, list, detail));
  section.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = { ArrowDown: () => move(1), ArrowUp: () => move(-1), j: () => move(1), k: () => move(-1),
      ArrowRight: () => sampleAt(1), ArrowLeft: () => sampleAt(-1), Enter: () => sampleAt(1) }[event.key];
    if (!action || (event.key === "Enter" && event.target.matches("button, summary, a"))) return;
    event.preventDefault();
    action();
  });
  section.focusList = () => list.focus({ preventScroll: true });
  showFilters();
  load();
  section.grown = (total) => {
    source.total = total;
    if (total === listed) return;
    if (!isUsed()) { load(); return; }
    newer.textContent = `${count(total - listed)} newer rollouts: list them`;
    newer.hidden = false;
  };
  return section;
};
