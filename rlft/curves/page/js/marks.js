// Draws the marks of a chart into a group, given where steps and values lie.
import { svg } from "./dom.js";

// "M1 2L3 4": broken where a value is missing.
const path = (xs, ys, x, y) => {
  let text = "";
  let pen = false;
  for (let i = 0; i < xs.length; i += 1) {
    if (ys[i] === null || ys[i] === undefined) { pen = false; continue; }
    text += `${pen ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
    pen = true;
  }
  return text;
};

const ALONE = 6;  // pixels to each side

const band = (mark, x, y) => {
  let text = "";
  let run = [];
  const close = () => {
    if (run.length === 1) {  // one step alone: as wide as can be seen
      const [at, low, high] = [x(mark.x[run[0]]), y(mark.low[run[0]]), y(mark.high[run[0]])];
      text += `M${at - ALONE} ${high}H${at + ALONE}V${low}H${at - ALONE}Z`;
    } else if (run.length) {
      const there = run.map((i) => `${x(mark.x[i]).toFixed(1)} ${y(mark.high[i]).toFixed(1)}`);
      const back = run.reverse().map((i) => `${x(mark.x[i]).toFixed(1)} ${y(mark.low[i]).toFixed(1)}`);
      text += `M${[...there, ...back].join("L")}Z`;
    }
    run = [];
  };
  mark.x.forEach((_, i) => {
    if (mark.low[i] === null || mark.high[i] === null) close();
    else run.push(i);
  });
  close();
  return text;
};

const DRAW = {
  course(mark, x, y, box) {
    const group = [];
    const color = `c-${mark.color}`;
    if (mark.low) group.push(svg("path", { class: `band ${color}`, d: band(mark, x, y) }));
    if (mark.faint) group.push(svg("path", { class: `line faint ${color}`, d: path(mark.faint.x, mark.faint.y, x, y) }));
    group.push(svg("path", { class: `line ${color} ${mark.dash ? "dashed" : ""}`, d: path(mark.x, mark.y, x, y) }));
    const few = mark.x.length <= 30 && !box.small;
    mark.x.forEach((step, i) => {
      const alone = mark.y[i] !== null && (mark.y[i - 1] ?? null) === null && (mark.y[i + 1] ?? null) === null;
      if (mark.y[i] !== null && (few || alone)) {
        group.push(svg("circle", { class: `dot ${color}`, cx: x(step), cy: y(mark.y[i]), r: alone && !box.small ? 3.5 : few ? 2.2 : 1.8 }));
      }
    });
    for (const step of mark.broken ?? []) {
      const [cx, cy] = [x(step), box.bottom - 6];
      group.push(svg("path", { class: "broken", d: `M${cx - 4} ${cy - 4}l8 8m0-8l-8 8` },
        svg("title", {}, `${mark.name} is not a number at step ${step}`)));
    }
    return group;
  },
  points(mark, x, y) {
    const color = `c-${mark.color}`;
    const group = mark.joined ? [svg("path", { class: `line thin ${color}`, d: path(mark.x, mark.y, x, y) })] : [];
    mark.x.forEach((step, i) => {
      if (mark.y[i] === null) return;
      const [cx, cy] = [x(step), y(mark.y[i])];
      if (mark.low[i] !== null && mark.high[i] !== null) {
        const [top, bottom] = [y(mark.high[i]), y(mark.low[i])];
        group.push(svg("path", { class: `whisker ${color}`, d: `M${cx} ${top}V${bottom}M${cx - 4} ${top}h8M${cx - 4} ${bottom}h8` }));
      }
      group.push(svg("circle", { class: `point ${color}`, cx, cy, r: 4.5 }));
    });
    return group;
  },
  level(mark, x, y, box) {
    return [svg("path", { class: `line level c-${mark.color}`, d: `M${box.left} ${y(mark.y)}H${box.right}` })];
  },
  bars(mark, x, y, box, piled) {
    const width = Math.max(1.5, Math.min(14, (box.right - box.left) / Math.max(20, box.steps) * 0.7));
    return mark.x.map((step, i) => {
      const from = piled.get(step) ?? 0;
      const to = from + (mark.y[i] ?? 0);
      piled.set(step, to);
      return svg("rect", { class: `fill c-${mark.color}`, x: x(step) - width / 2, y: y(to), width, height: Math.max(0, y(from) - y(to)) });
    });
  },
  area(mark, x, y, box, piled) {
    const low = mark.x.map((step) => piled.get(step) ?? 0);
    const high = mark.x.map((step, i) => (piled.get(step) ?? 0) + (mark.y[i] ?? 0));
    mark.x.forEach((step, i) => piled.set(step, high[i]));
    if (mark.x.length === 1) {
      const bar = { x: x(mark.x[0]) - 6, y: y(high[0]), width: 12, height: Math.max(0, y(low[0]) - y(high[0])) };
      return [svg("rect", { class: `fill c-${mark.color}`, ...bar })];
    }
    return [svg("path", { class: `fill c-${mark.color}`, d: band({ x: mark.x, low, high }, x, y) })];
  },
};

export const drawMarks = (marks, x, y, box) => {
  const piled = new Map();
  return marks.flatMap((mark) => DRAW[mark.kind](mark, x, y, box, piled));
};
