// The rail below the main chart: alarms, restarts, checkpoints and other events at their steps.
import { svg } from "./dom.js";

const SHAPES = {
  alarm: (x, y) => `M${x} ${y - 5}l5.5 10h-11z`,
  restart: (x, y) => `M${x - 4.5} ${y - 4.5}h9v9h-9z`,
  event: (x, y) => `M${x} ${y - 5}l5 5l-5 5l-5-5z`,
  checkpoint: (x, y) => `M${x - 0.9} ${y - 5}h1.8v10h-1.8z`,
};

export const KINDS = ["alarm", "restart", "event", "checkpoint"];

export const drawRail = (rail, x, y, box, onpoint, onleave) => {
  const group = svg("g", { class: "rail" });
  group.append(svg("path", { class: "railline", d: `M${box.left} ${y}H${box.right}` }));
  for (const kind of [...KINDS].reverse()) {
    const places = new Map();
    for (const each of rail) {
      if (each.kind !== kind) continue;
      const place = Math.round(x(each.step));
      if (place < box.left - 1 || place > box.right + 1) continue;
      if (!places.has(place)) places.set(place, []);
      places.get(place).push(each);
    }
    for (const [place, here] of places) {
      group.append(svg("path", {
        class: `mark-${kind}`, d: SHAPES[kind](place, y),
        onpointerenter: (event) => onpoint(event, here), onpointerleave: onleave,
      }));
    }
  }
  return group;
};

export const shapeIcon = (kind) =>
  svg("svg", { class: "icon", viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("path", { class: `mark-${kind}`, d: SHAPES[kind](6, 6) }));
