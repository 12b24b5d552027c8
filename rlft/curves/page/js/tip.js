// One box that floats beside what is pointed at.
import { el, replace } from "./dom.js";

const box = el("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });

export const showTip = (x, y, ...children) => {
  if (!box.isConnected) document.body.append(box);
  replace(box, ...children);
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const left = x + 14 + width > innerWidth - 8 ? Math.max(8, x - width - 14) : x + 14;
  const top = Math.max(8, Math.min(y - height / 2, innerHeight - height - 8));
  box.style.left = `${left}px`;
  box.style.top = `${top}px`;
};

export const hideTip = () => { box.hidden = true; };

addEventListener("scroll", hideTip, { passive: true });
