// What the words of the field mean, shown where one stands still on them or reaches them by the keyboard.
import { el } from "./dom.js";
import { hideTip, showTipAt } from "./tip.js";

const TERMS = {
  "KL": "How far the policy has moved from the reference: the mean of log(policy / reference) over sampled tokens, in nats.",
  "Entropy": "How undecided the policy is at a token, in nats. Near 0 it answers the same each time.",
  "Clip fraction": "Share of tokens whose update was held back because their probability had changed too much already.",
  "Mismatch KL": "How far the log-probabilities of the engine that samples differ from those of the learner, for the same tokens and weights.",
  "Mismatch": "Mean difference between the log-probabilities of the engine that samples and those of the learner, for the same tokens and weights.",
  "Repetition": "Tokens in phrases that their completion has already, and samples that another sample of the task equals.",
  "Gradient norm": "Length of the gradient before it is clipped: how far one update wants to go.",
  "Explained variance": "Share of the differences between returns that the critic foresees. Below 0 it is worse than their mean.",
  "Effective samples": "How many equally weighted samples are worth as much as these weighted ones, as a share.",
  "Largest ratio": "The largest new / old probability of a token within an update.",
  "Staleness": "How many adapter versions lie between the policy that sampled and the one that learns.",
  "shadow": "A reward for what you want that is not trained on. If the trained reward rises and it does not, the reward is earned some other way.",
  "held out": "Tasks that are never trained on.",
  "Held-out": "On tasks that are never trained on.",
  "advantage": "How much better a sample is than the other samples of its task; what its log-probability is pushed by.",
  "Gave no gradient": "Sampled tokens that taught nothing, for example because all samples of the task got the same reward.",
  "95 %": "Intervals that hold the true value 95 times out of 100. Tasks are counted, not samples.",
  "interval": "The range in which the true change lies as often as its level says.",
  "smallest effect of interest": "The smallest change that is worth shipping (evaluation.min_effect).",
  "pass@": "Share of tasks of which at least one of k samples is right.",
  "pass^": "Share of tasks of which all k samples are right.",
  "surprise": "How far a metric moved from the first to the last steps, in half widths of the 95 % interval of that change. Above 1 it is more than chance.",
  "alarm": "A rule that compares the run with its own beginning; docs/health.md.",
  "group": "The samples of one task in one step; they are compared with each other.",
  "Groups": "The samples of one task in one step. Groups with equal rewards teach nothing.",
};
const KNOWN = new RegExp(`(${Object.keys(TERMS).sort((a, b) => b.length - a.length).map((term) => term.replace(/[\^%@]/g, "\\$&")).join("|")})`);

const explain = (term) => (event) => {
  const mark = event.currentTarget;
  const where = () => { const { right, top, height } = mark.getBoundingClientRect(); return [right, top + height / 2]; };
  showTipAt(where, el("b", {}, term), el("p", {}, TERMS[term]));
};

// A text in which the first known term can be asked about.
export const withTerm = (text) => {
  const found = KNOWN.exec(text);
  if (!found) return [text];
  const term = found[1];
  const mark = el("span", {
    class: "term", tabindex: 0, "aria-description": TERMS[term],
    onpointerenter: explain(term), onfocus: explain(term), onpointerleave: hideTip, onblur: hideTip,
  }, term);
  return [text.slice(0, found.index), mark, text.slice(found.index + term.length)];
};
