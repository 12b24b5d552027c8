// A chart: axes, marks, a crosshair with the values beside it, zoom over steps that all charts share, and its table.
import { button, el, replace, svg } from "./dom.js";
import { drawMarks } from "./marks.js";
import { shown, tickText } from "./numbers.js";
import { KINDS, drawRail, shapeIcon } from "./rail.js";
import { extent, linear, ticks } from "./scale.js";
import { get, set, watch } from "./state.js";
import { valueTable } from "./tables.js";
import { withTerm } from "./terms.js";
import { hideTip, showTip, showTipAt } from "./tip.js";

let bounds = [0, 1];
export const setBounds = (steps) => { bounds = steps; };

// The steps that all charts show: those of the address, or all.
const range = () => {
  const [from, to] = get("zoom").split("..").map(Number);
  return Number.isFinite(from) && Number.isFinite(to) && to > from ? [from, to] : bounds;
};

const waiting = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) entry.target.draw();
}, { rootMargin: "300px" });

const resized = new ResizeObserver((entries) => {
  for (const entry of entries) if (entry.target.drawn) entry.target.draw();
});

const all = new Set();
let made = 0;
const redraw = () => { for (const plot of all) if (plot.isConnected && plot.drawn) plot.draw(); };

// Draws what is on the screen now, not in the next frame, and lets go of charts that are on the page no longer.
export const drawShown = () => {
  for (const plot of all) {
    if (!plot.isConnected) {
      all.delete(plot);
      waiting.unobserve(plot);
      resized.unobserve(plot);
    } else {
      const { top, bottom } = plot.getBoundingClientRect();
      if (top < innerHeight && bottom > 0) plot.draw();
    }
  }
};
watch(["zoom"], redraw);
addEventListener("beforeprint", () => { for (const plot of all) if (plot.isConnected) plot.draw(); });

const legend = (chart) => {
  const items = chart.marks.filter((mark) => mark.name).map((mark) => {
    const shape = mark.kind === "points" ? svg("circle", { class: `point c-${mark.color}`, cx: 11, cy: 6, r: 4 })
      : mark.kind === "bars" || mark.kind === "area" ? svg("rect", { class: `fill c-${mark.color}`, x: 4, y: 1, width: 14, height: 10, rx: 2 })
      : svg("path", { class: `line c-${mark.color} ${mark.dash ? "dashed" : ""} ${mark.kind === "level" ? "level" : ""}`, d: "M1 6H21" });
    return el("span", {}, svg("svg", { class: "swatch", viewBox: "0 0 22 12", "aria-hidden": "true" }, shape), mark.name);
  });
  const kinds = KINDS.filter((kind) => (chart.rail ?? []).some((each) => each.kind === kind));
  items.push(...kinds.map((kind) => el("span", {}, shapeIcon(kind), kind)));
  return items.length > 1 ? el("div", { class: "legend" }, items) : null;
};

// What each mark says at a step: [name, color, text].
const readings = (chart, step) => chart.marks.flatMap((mark) => {
  if (mark.kind === "level") return mark.name ? [[mark.name, mark.color, shown(mark.y, chart.axis === "share")]] : [];
  const at = mark.x.indexOf(step);
  if (at < 0) return [];
  const share = chart.axis === "share";
  let text = mark.texts?.[at] ?? shown(mark.y[at], share);
  if (!mark.texts && mark.low?.[at] != null) text += ` [${shown(mark.low[at], share)}, ${shown(mark.high[at], share)}]`;
  return [[mark.name, mark.color, text]];
});

const ASK = { mouse: "click", touch: "tap again", keys: "Enter" };
const NEAR = 10;  // pixels by which a second tap may miss the first

const stepsOf = (chart) => [...new Set(chart.marks.flatMap((mark) => mark.x ?? []))].sort((a, b) => a - b);

// Options: height, small (fewer ticks, no dots), onstep (called with a step that was chosen), name (a label for it).
export const chartOf = (chart, { height = 190, small = false, onstep = null, badge = null } = {}) => {
  const plot = el("div", { class: "plot", tabindex: 0, role: "group", "aria-label": `Chart: ${chart.title}. Arrow keys read values${onstep ? ", Enter opens the samples" : ""}.` });
  plot.style.height = `${height}px`;
  const steps = stepsOf(chart);
  let at = null;
  let tapped = null;
  let isRead = false;
  let x = null;
  let box = null;
  let drag = null;
  let kind = "mouse";
  const number = (made += 1);

  const draw = () => {
    const width = plot.clientWidth;
    if (!width) return;
    plot.drawn = true;
    const [from, to] = range();
    const [low, high] = extent(chart, from, to);
    const railed = chart.rail?.length ? 18 : 0;
    let most = small ? 3 : Math.max(3, Math.round(height / 55));
    let vertical = ticks(low, high, most);
    while (vertical.values.length < 2 && most < 9) vertical = ticks(low, high, most += 1);
    const texts = vertical.values.map((value) => tickText(value, vertical.step, chart.axis === "share"));
    const left = 10 + 6.6 * Math.max(...texts.map((text) => text.length), 1);
    box = { left, right: width - 10, top: 8, bottom: height - 22 - railed, small, steps: to - from };
    x = linear(from, to, box.left, box.right);
    const y = linear(low, high, box.bottom, box.top);
    const clip = `clip${number}`;
    const horizontal = ticks(from, to, Math.max(2, Math.min(10, Math.floor(width / (small ? 70 : 90)))), true);
    const axes = svg("g", { class: "axes" },
      vertical.values.map((value, i) => [
        svg("path", { class: "grid", d: `M${box.left} ${y(value).toFixed(1)}H${box.right}` }),
        svg("text", { x: box.left - 6, y: y(value) + 3.8, "text-anchor": "end" }, texts[i]),
      ]),
      svg("path", { class: "base", d: `M${box.left} ${box.bottom}H${box.right}` }),
      horizontal.values.map((value) => svg("text", { x: x(value), y: height - 5, "text-anchor": "middle" }, Math.round(value).toLocaleString("en-US"))));
    const frame = svg("clipPath", { id: clip }, svg("rect", { x: box.left, y: 0, width: Math.max(0, box.right - box.left), height }));
    const body = svg("g", { "clip-path": `url(#${clip})` }, drawMarks(chart.marks, x, y, box));
    const alarms = (chart.rail ?? []).filter((each) => each.kind === "alarm" && each.step >= from && each.step <= to)
      .map((each) => svg("path", { class: "onset", d: `M${x(each.step)} ${box.top}V${box.bottom}` }));
    const rail = railed ? drawRail(chart.rail, x, box.bottom + 11, box, pointed, hideTip) : null;
    const cross = svg("path", { class: "cross" });
    const brush = svg("rect", { class: "brush", y: box.top, height: box.bottom - box.top, width: 0 });
    replace(plot, svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, frame, axes, alarms, body, rail, brush, cross));
    plot.cross = cross;
    plot.brush = brush;
  };

  const pointed = (event, here) => {
    const texts = here.slice(0, 6).map((each) => el("p", {}, each.text));
    if (here.length > 6) texts.push(el("p", { class: "muted" }, `and ${here.length - 6} more`));
    showTip(event.clientX, event.clientY, el("b", {}, `step ${here[0].step}`), texts);
  };

  const nearest = (step) => {
    const [from, to] = range();
    let best = null;
    for (const each of steps) {
      if (each >= from && each <= to && (best === null || Math.abs(each - step) < Math.abs(best - step))) best = each;
    }
    return best;
  };

  const read = (step, how, clientX, clientY) => {
    at = step;
    if (!plot.cross) draw();  // reached by the keyboard before it was seen
    if (step === null || !plot.cross) return;
    isRead = true;
    const place = x(step);
    plot.cross.setAttribute("d", `M${place} ${box.top}V${box.bottom}`);
    const rows = readings(chart, step).map(([name, color, text]) =>
      el("tr", {}, el("td", {}, el("i", { class: `chip-color c-${color}` }), name), el("td", { class: "n" }, text)));
    const what = Number.isInteger(step) ? `step ${step.toLocaleString("en-US")}` : `steps around ${Math.round(step).toLocaleString("en-US")}`;
    const told = [el("b", {}, what), el("table", {}, el("tbody", {}, rows)), onstep ? el("p", { class: "muted" }, `${ASK[how]}: the samples of this step`) : null];
    if (how === "keys") showTipAt(() => { const corner = plot.getBoundingClientRect(); return [corner.left + place, corner.top + 60]; }, told);
    else showTip(clientX, clientY, told);
  };

  const leave = () => { tapped = null; isRead = false; plot.cross?.setAttribute("d", ""); hideTip(); };

  // A tap reads a step; another one on it, while it is read, opens its samples.
  const tap = (place, clientX, clientY) => {
    const step = nearest(x.back(place));
    if (onstep && tapped !== null && (step === tapped || Math.abs(place - x(tapped)) < NEAR)) {
      const chosen = tapped;
      leave();
      onstep(chosen);
    } else {
      tapped = step;
      read(step, "touch", clientX, clientY - 90);
    }
  };

  plot.draw = draw;
  plot.reading = () => (isRead ? at : null);
  plot.resume = (step) => { draw(); if (steps.includes(step)) read(step, "keys"); };
  all.add(plot);
  plot.addEventListener("pointermove", (event) => {
    if (!x || event.target.closest?.(".rail path:not(.railline)")) return;
    const place = event.clientX - plot.getBoundingClientRect().left;
    if (drag !== null) {
      const [a, b] = [Math.min(drag, place), Math.max(drag, place)];
      plot.brush.setAttribute("x", Math.max(box.left, a));
      plot.brush.setAttribute("width", Math.max(0, Math.min(box.right, b) - Math.max(box.left, a)));
      return;
    }
    if (event.pointerType === "mouse") read(nearest(x.back(place)), "mouse", event.clientX, event.clientY);
  });
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !x) return;
    kind = event.pointerType;
    drag = event.clientX - plot.getBoundingClientRect().left;
    if (event.pointerType === "mouse") plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointerup", (event) => {
    if (drag === null) return;
    const place = event.clientX - plot.getBoundingClientRect().left;
    const moved = Math.abs(place - drag);
    const ends = [x.back(Math.min(drag, place)), x.back(Math.max(drag, place))];
    drag = null;
    plot.brush?.setAttribute("width", 0);
    if (moved > 12 && ends[1] - ends[0] >= 1) {
      set({ zoom: ends.map((end) => Math.round(end * 10) / 10).join("..") });
    } else if (moved <= 4) {
      const step = nearest(x.back(place));
      if (event.pointerType !== "mouse") tap(place, event.clientX, event.clientY);
      else if (onstep && step !== null) { leave(); onstep(step); }
    }
  });
  plot.addEventListener("pointercancel", () => { drag = null; plot.brush?.setAttribute("width", 0); });
  plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") leave(); });  // a finger is lifted
  plot.addEventListener("blur", leave);
  plot.addEventListener("dblclick", () => { if (kind === "mouse") set({ zoom: null }); });
  plot.addEventListener("keydown", (event) => {
    const visible = steps.filter((step) => step >= range()[0] && step <= range()[1]);
    const index = visible.indexOf(at);
    const to = { ArrowLeft: index < 0 ? visible.length - 1 : index - 1, ArrowRight: index + 1, Home: 0, End: visible.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      read(visible[Math.max(0, Math.min(visible.length - 1, to))] ?? null, "keys");
    } else if (event.key === "Enter" && onstep && at !== null) { event.preventDefault(); leave(); onstep(at); }
    else if (event.key === "Escape") { leave(); set({ zoom: null }); }
  });
  waiting.observe(plot);
  resized.observe(plot);

  const table = el("div", { class: "values", hidden: true });
  const toggle = button("table", () => {
    if (!table.childElementCount) table.append(valueTable(chart));
    table.hidden = !table.hidden;
    toggle.setAttribute("aria-expanded", String(!table.hidden));
  }, { class: "quiet", "aria-expanded": "false", "data-key": "table", "aria-label": `Values of ${chart.title} as a table` });
  const reset = button("all steps", () => set({ zoom: null }), { class: "quiet", hidden: !get("zoom") });
  watch(["zoom"], () => { reset.hidden = !get("zoom"); });
  return el("figure", { class: `chart${small ? " small" : ""}`, "data-key": chart.title },
    el("header", {}, el("h3", {}, withTerm(chart.title)), badge, el("span", { class: "tools" }, reset, toggle),
      el("p", { class: "hint" }, withTerm(chart.hint))),
    legend(chart), plot, table);
};
