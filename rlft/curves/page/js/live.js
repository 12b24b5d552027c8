// A page that is served: it says whether the run grows, and fetches its data again when it has.
import { el } from "./dom.js";

export const liveSign = () => el("span", { class: "live", title: "this page follows the run" }, "live");

// Calls `ongrowth` with the new data whenever the server says that the run has grown.
export const follow = (sign, ongrowth) => {
  const stream = new EventSource("events");
  stream.addEventListener("grown", async () => {
    const answer = await fetch("data.json");
    if (answer.ok) ongrowth(await answer.json());
  });
  stream.addEventListener("open", () => { sign.textContent = "live"; sign.classList.remove("lost"); });
  stream.addEventListener("error", () => { sign.textContent = "not connected"; sign.classList.add("lost"); });
};
