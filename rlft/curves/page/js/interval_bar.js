// The effect on a line: its interval, 0, and the stretch that is too small to matter.
import { el, svg } from "./dom.js";
import { tickText } from "./numbers.js";
import { linear, ticks } from "./scale.js";
import { withTerm } from "./terms.js";

export const intervalBar = (bar, effect) => {
  const [width, height, middle] = [420, 74, 30];
  const x = linear(bar.ends[0], bar.ends[1], 12, width - 12);
  const marks = ticks(bar.ends[0], bar.ends[1], 5);
  const least = bar.min_effect;
  const side = bar.low === null ? "none" : bar.low > least ? "good" : bar.high < least ? "bad" : "unsure";
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Change ${effect.text}, smallest effect of interest ${least}` },
    svg("rect", { class: "nothing", x: x(-least), y: 8, width: Math.max(1, x(least) - x(-least)), height: 42 }),
    svg("path", { class: "base", d: `M12 50H${width - 12}` }),
    marks.values.map((value) => [
      svg("path", { class: value === 0 ? "zero" : "grid", d: value === 0 ? `M${x(0)} 4V54` : `M${x(value)} 47V53` }),
      svg("text", { x: x(value), y: 68, "text-anchor": "middle" }, (value > 0 ? "+" : "") + tickText(value, marks.step, false)),
    ]),
    svg("path", { class: "least", d: `M${x(least)} 8V50` }),
    bar.low === null ? null : svg("path", { class: `reach t-${side}`, d: `M${x(bar.low)} ${middle}H${x(bar.high)}M${x(bar.low)} ${middle - 7}v14M${x(bar.high)} ${middle - 7}v14` }),
    svg("circle", { class: `middle t-${side}`, cx: x(bar.mean), cy: middle, r: 6 }));
  return el("div", { class: "effect" },
    el("div", { class: "effecthead" }, el("strong", {}, effect.text.split(" [")[0]),
      el("span", {}, effect.text.includes("[") ? `[${effect.text.split(" [")[1]}` : effect.why_none)),
    drawing,
    el("p", { class: "hint" }, `${effect.metric}, ${effect.labels[1]} against ${effect.labels[0]}; ${effect.level_text}, ${effect.n} tasks. `,
      withTerm(`Grey: within ±${least}, the smallest effect of interest.`)));
};
