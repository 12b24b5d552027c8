// One box that floats beside what is pointed at, or beside what the keyboard has reached.
import { el, replace } from "./dom.js";

const box = el("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });
let anchor = null;

const putTip = (x, y) => {
  const { width, height } = box.getBoundingClientRect();
  const left = x + 14 + width > innerWidth - 8 ? Math.max(8, x - width - 14) : x + 14;
  const top = Math.max(8, Math.min(y - height / 2, innerHeight - height - 8));
  box.style.left = `${left}px`;
  box.style.top = `${top}px`;
};

export const showTip = (x, y, ...children) => {
  if (!box.isConnected) document.body.append(box);
  replace(box, ...children);
  box.hidden = false;
  anchor = null;
  putTip(x, y);
};

// The same beside a place that `where` tells, also after scrolling, which reaching something by the keyboard does.
export const showTipAt = (where, ...children) => {
  showTip(...where(), ...children);
  anchor = where;
};

export const hideTip = () => { box.hidden = true; anchor = null; };

addEventListener("scroll", () => { if (anchor) putTip(...anchor()); else hideTip(); }, { passive: true });
