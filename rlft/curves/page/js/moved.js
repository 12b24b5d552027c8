// What moved the reward between two windows: contributions that add up, kinds of samples, what appeared and disappeared.
import { button, el, replace, svg } from "./dom.js";
import { applyFolds } from "./folds.js";
import { get, set, watch } from "./state.js";
import { tableOf } from "./tables.js";

const example = (each) => el("article", { class: "sample" },
  el("header", {}, el("span", { class: "badge" }, each.reward === null ? "no score" : `reward ${each.reward}`), el("span", { class: "muted" }, each.kind),
    button(`step ${each.step}, ${each.task}`, () => { set({ step: each.step, task: each.task, q: null, kind: null, group: null, sample: null, at: "samples" }); document.getElementById("samples")?.scrollIntoView(); }, { class: "quiet" })),
  el("details", {}, el("summary", {}, "prompt"), el("pre", {}, each.prompt)), el("pre", {}, each.text), el("p", { class: "hint" }, `Answer: ${each.answer}`));

const examples = (title, list) => (list.length ? el("div", {}, el("h3", {}, title), el("div", { class: "side" }, list.map(example))) : null);

// A line for each part, its bar beginning where the one before ended, and the sum below.
const waterfall = (change) => {
  const parts = change.parts.slice(0, 12);
  const ends = [0];
  for (const part of parts) ends.push(ends.at(-1) + part.added);
  const [low, high] = [Math.min(...ends, change.total, 0), Math.max(...ends, change.total, 0)];
  const place = (value) => 100 * ((value - low) / (high - low || 1));
  const row = (name, from, to, text, kind) => el("div", { class: "fall" }, el("span", { class: "fallname" }, name),
    svg("svg", { width: "100%", height: 16, "aria-hidden": "true" },
      svg("rect", { class: kind, x: `${Math.min(place(from), place(to))}%`, width: `${Math.max(0.4, Math.abs(place(to) - place(from)))}%`, y: 2, height: 12, rx: 2 })),
    el("span", { class: "n" }, text));
  return el("div", { class: "falls" }, parts.map((part, i) => row(part.name, ends[i], ends[i + 1], part.text, `fill c-${part.added < 0 ? "red" : "blue"}`)),
    change.parts.length > parts.length ? el("p", { class: "hint" }, `and ${change.parts.length - parts.length} smaller parts`) : null,
    row("together", 0, change.total, (change.total < 0 ? "" : "+") + change.total.toFixed(3), "fill c-grey"));
};

const shownChange = (change) => [
  el("p", {}, change.sentences[0]), waterfall(change),
  change.sentences.length > 1 ? el("ul", {}, change.sentences.slice(1).map((text) => el("li", {}, text))) : null,
  el("div", { class: "pair" }, el("div", {}, tableOf(change.kinds)), change.tasks ? el("div", {}, tableOf(change.tasks)) : null),
  el("details", { class: "examples", open: get("examples") === "yes", ontoggle: (event) => set({ examples: event.target.open ? "yes" : null }) },
    el("summary", {}, "samples that appeared and disappeared"),
    examples(`Appeared, in ${change.to}`, change.appeared), examples(`Disappeared, in ${change.from}`, change.disappeared)),
];

let latestAnswer = { query: "", found: null };

export const moved = (data, live) => {
  if (!data.moved) return null;
  const { changes, fails } = data.moved;
  const [body, told] = [el("div"), el("p", { class: "hint", role: "status" })];
  const froms = [...new Set(changes.map((change) => change.from))];
  const choice = (label, name, options) => {
    const node = el("select", { "aria-label": label, onchange: () => { replace(told); set({ [name]: node.value }); } }, options.map((text) => el("option", { value: text }, text)));
    return node;
  };
  const from = choice("From", "from", froms);
  const to = choice("To", "to", []);
  // The steps that a chart is zoomed to, as the window that lies nearest to them.
  const middle = (label) => { const ends = label.match(/\d+/g)?.map(Number); return label.startsWith("step") && ends ? (ends[0] + ends.at(-1)) / 2 : null; };
  const brushed = (name, options) => () => {
    const zoom = get("zoom").split("..").map(Number);
    if (live) { set({ [name]: `${Math.max(0, Math.ceil(zoom[0]))}-${Math.floor(zoom[1])}` }); return; }
    const near = options().filter((label) => middle(label) !== null)
      .sort((a, b) => Math.abs(middle(a) - (zoom[0] + zoom[1]) / 2) - Math.abs(middle(b) - (zoom[0] + zoom[1]) / 2))[0];
    if (!near) return;
    set({ [name]: near });
    const asked = `${Math.ceil(zoom[0])}-${Math.floor(zoom[1])}`;
    if (near !== `steps ${asked}`) replace(told, `Zoomed to steps ${asked}; shown ${name} ${near}, the nearest window that is in this file. rlft view and rlft why compare any two.`);
  };
  const tos = () => changes.filter((change) => change.from === from.value).map((change) => change.to);
  const brushes = [button("from the zoomed steps", brushed("from", () => froms), { class: "quiet" }), button("to the zoomed steps", brushed("to", tos), { class: "quiet" })];
  let turn = 0;
  const show = async () => {
    for (const node of brushes) node.hidden = !get("zoom");
    if (!get("zoom")) replace(told);
    const now = (turn += 1);
    const free = live && [get("from"), get("to")].some((text) => /^\d+(-\d+)?$/.test(text));
    if (free) {
      const ask = (text, spare) => text.replace(/^steps? /, "") || spare.replace(/^steps? /, "");
      const query = new URLSearchParams({ from: ask(get("from"), changes[0].from), to: ask(get("to"), changes[0].to) });
      if (latestAnswer.query === String(query)) replace(body, shownChange(latestAnswer.found));  // until it is told again
      const answer = await fetch(`moved?${query}`);
      if (now !== turn) return;
      if (!answer.ok) { replace(body, el("p", { class: "note" }, await answer.text())); return; }
      latestAnswer = { query: String(query), found: await answer.json() };
      if (now !== turn) return;
      replace(body, shownChange(latestAnswer.found));
      applyFolds();
      return;
    }
    from.value = froms.includes(get("from")) ? get("from") : changes[0].from;
    replace(to, tos().map((text) => el("option", { value: text }, text)));
    to.value = tos().includes(get("to")) ? get("to") : tos().includes(changes[0].to) ? changes[0].to : tos().at(-1);
    replace(body, shownChange(changes.find((change) => change.from === from.value && change.to === to.value)));
  };
  watch(["from", "to", "zoom"], () => { show(); applyFolds(); });
  show();
  return [
    el("div", { class: "panel moved" }, el("header", {}, el("h3", {}, "What moved the reward"), el("span", { class: "filters" }, from, "→", to, brushes)), told, body),
    fails ? el("div", { class: "panel fails" }, el("h3", {}, "What fails at the end"), el("p", {}, fails.sentence), tableOf(fails.table),
      el("details", {}, el("summary", {}, "typical ones, then those of the lowest reward"), examples("Typical", fails.typical), examples("Lowest rewards", fails.extremes))) : null,
  ];
};
