// A page that is served: it says whether the run grows, and fetches its data again when it has.
import { el } from "./dom.js";

export const liveSign = () => el("span", { class: "live", title: "this page follows the run" }, "live");

// While a mouse button or a finger is down: what it drags must not be taken away from it.
const released = () => new Promise((resolve) => {
  if (!held) { resolve(); return; }
  for (const kind of ["pointerup", "pointercancel"]) addEventListener(kind, () => setTimeout(resolve), { once: true });
});
let held = false;
addEventListener("pointerdown", () => { held = true; }, { capture: true });
for (const kind of ["pointerup", "pointercancel"]) addEventListener(kind, () => { held = false; }, { capture: true });

// Calls `ongrowth` with the new data whenever the server says that the run has grown; once more, if it grew meanwhile.
export const follow = (sign, ongrowth) => {
  const stream = new EventSource("events");
  let [reading, again] = [false, false];
  stream.addEventListener("grown", async () => {
    again = true;
    if (reading) return;
    reading = true;
    try {
      while (again) {
        again = false;
        const answer = await fetch("data.json");
        if (!answer.ok) continue;
        const grown = await answer.json();
        await released();
        ongrowth(grown);
      }
    } finally {
      reading = false;
    }
  });
  stream.addEventListener("open", () => { sign.textContent = "live"; sign.classList.remove("lost"); });
  stream.addEventListener("error", () => { sign.textContent = "not connected"; sign.classList.add("lost"); });
};
