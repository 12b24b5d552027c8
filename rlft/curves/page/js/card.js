// One sample, whole: what it said, what it got, why it failed, and the program that repeats that.
import { copyButton, el } from "./dom.js";
import { shown } from "./numbers.js";

// A text in which what was searched for is marked.
export const marked = (text, query) => {
  if (!query) return [text];
  const parts = [];
  const low = text.toLowerCase();
  const wanted = query.toLowerCase();
  let from = 0;
  for (let at = low.indexOf(wanted); at >= 0 && parts.length < 400; at = low.indexOf(wanted, from)) {
    parts.push(text.slice(from, at), el("mark", {}, text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  parts.push(text.slice(from));
  return parts;
};

export const turns = (said, query = "") => el("div", { class: "conversation" }, said.map(([role, content]) =>
  el("div", { class: `turn${role === "assistant" ? " policy" : ""}` }, el("div", { class: "hint" }, role), el("pre", {}, marked(content, query)))));

const failureOf = (failure, label) => el("div", { class: "failure" },
  label || failure.where ? el("p", {}, el("b", { class: "bad" }, label), failure.where ? el("span", { class: "muted" }, ` ${failure.where}`) : null) : null,
  failure.message ? el("pre", {}, failure.message) : null,
  failure.reproduce ? el("details", {}, el("summary", {}, "program that repeats it"), copyButton(failure.reproduce), el("pre", {}, failure.reproduce)) : null);

export const badge = (sample) => sample.outcome === "failed"
  ? el("span", { class: "badge t-bad" }, sample.failure?.kind || "failed")
  : sample.outcome === "abstain" ? el("span", { class: "badge" }, "abstained") : el("span", { class: "badge" }, `reward ${shown(sample.reward)}`);

export const card = (sample, query = "") => {
  const facts = [
    sample.advantage === undefined ? null : `advantage ${shown(sample.advantage)}`,
    `${sample.tokens} tokens${sample.cut ? ", cut at the limit" : ""}`,
    sample.turns ? `${sample.turns} turns, ended: ${sample.ended}` : null,
    sample.environment === undefined ? null : `the environment gave ${shown(sample.environment)}`,
  ].filter(Boolean).join(" · ");
  const parts = Object.entries(sample.parts ?? {});
  return el("article", { class: "sample", tabindex: -1, "data-key": `sample ${sample.index}`, "data-index": sample.index },
    el("header", {}, badge(sample), el("span", { class: "muted" }, `sample ${sample.index}`), el("span", { class: "muted" }, facts)),
    sample.conversation ? turns(sample.conversation, query) : el("pre", {}, marked(sample.text, query)),
    el("p", { class: "hint parts" }, parts.slice(0, 30).map(([name, value]) => el("span", {}, `${name} ${typeof value === "number" ? shown(value) : value}`)),
      parts.length > 30 ? el("span", {}, `and ${parts.length - 30} more parts`) : null, el("span", {}, sample.policy)),
    sample.failure ? failureOf(sample.failure, "") : null,
    Object.entries(sample.failed_parts ?? {}).map(([name, failure]) => failureOf(failure, `${name} failed: ${failure.kind ?? ""}`)));
};
