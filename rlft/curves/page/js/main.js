// Builds the page of a run from its data: from the file itself, or from the server.
import { chartOf, drawShown, setBounds } from "./chart.js";
import { chips, decision, header, tiles } from "./decision.js";
import { el, replace } from "./dom.js";
import { applyFolds, remember } from "./folds.js";
import { health } from "./health.js";
import { heldout } from "./heldout.js";
import { follow, liveSign } from "./live.js";
import { samples } from "./samples.js";
import { behind, evaluations, failures, shadows, waste } from "./sections.js";
import { liveSource, offlineSource } from "./source.js";
import { forget, get, keepWatchers, set } from "./state.js";
import { why } from "./why.js";

const unpack = async (text) => {
  const bytes = Uint8Array.from(atob(text.trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

const fetched = async () => {
  const answer = await fetch("data.json");
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 2000));
  return answer.json();
};

const NAMES = { why: "Why", samples: "Samples", heldout: "Held out", health: "Health", shadows: "Shadows", waste: "Waste", evaluations: "Evaluations", failures: "Failures", behind: "Behind" };

let list = null;

// The samples are made once and stay as they are while the rest is built again from data that have grown.
const keepSamples = (data, sign) => {
  if (!data.samples) return;
  if (list) { list.grown(data.samples.total); return; }
  list = samples(sign ? liveSource(data.samples) : offlineSource(data.samples));
  keepWatchers();
};

const build = (data, sign) => {
  const page = document.getElementById("page");
  const found = remember();
  forget();
  setBounds(data.steps);
  keepSamples(data, sign);
  const onstep = list ? (step) => {
    set({ step: Math.round(step), task: null, q: null, kind: null, group: null, sample: null, at: "samples" });
    list.scrollIntoView();
    list.focusList();
  } : null;
  const [main, ...apart] = data.result;
  const parts = [why(data, onstep, Boolean(sign)), list, heldout(data), health(data, onstep), shadows(data), waste(data), evaluations(data, onstep), failures(data), behind(data)].filter(Boolean);
  const go = (id) => (event) => { event.preventDefault(); set({ at: id }); document.getElementById(id).scrollIntoView(); };
  const nav = el("nav", { "aria-label": "Sections" }, parts.map((part) => el("a", { href: `#at=${part.id}`, onclick: go(part.id) }, NAMES[part.id])));
  const nodes = [header(data, sign), data.notes.map((note) => el("p", { class: "note" }, note)), decision(data), chips(data, parts.map((part) => part.id)),
    main ? el("section", { class: "panel main", id: "result" }, chartOf(main, { height: Math.max(240, Math.min(330, innerHeight - 470)), onstep })) : null,
    nav, tiles(data),
    apart.length ? el("div", { class: "pair" }, apart.map((chart) => el("div", { class: "panel" }, chartOf(chart, { height: 200, onstep })))) : null, parts].flat(Infinity).filter(Boolean);
  const kept = list ? nodes.indexOf(list) : nodes.length;
  for (const node of [...page.children]) if (node !== list) node.remove();
  page.prepend(...nodes.slice(0, kept));
  page.append(...nodes.slice(list?.isConnected ? kept + 1 : kept));
  applyFolds();
  found();
  drawShown();
};

const start = async () => {
  keepWatchers();
  const block = document.getElementById("data");
  const live = block.dataset.live === "yes";
  const data = live ? await fetched() : await unpack(block.textContent);
  const sign = live ? liveSign() : null;
  build(data, sign);
  if (get("at")) document.getElementById(get("at"))?.scrollIntoView();
  if (live) follow(sign, (grown) => build(grown, sign));
  document.documentElement.dataset.ready = "yes";
};

addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches?.("input, textarea, select")) {
    const search = document.querySelector("#samples input[type=search]");
    if (search) { event.preventDefault(); search.focus(); }
  }
});

start().catch((error) => {
  replace(document.getElementById("page"), el("p", { class: "note" }, `The page could not be built: ${error.message}`));
  throw error;
});
