// What is unfolded and where one stands, by keys that the page still has when it is built again.
import { get, set, watch } from "./state.js";

const FOLDS = "details:not(.examples), button[aria-expanded]:not([aria-controls])";
const STOPS = "a, button, input, select, summary, [tabindex]";
const SCROLLED = ".list, .detail, .scroll, .values, pre, nav";
const ABSENT = 40;  // how many folds that are not on the page now are remembered

const ownName = (node) => {
  const text = node.getAttribute("aria-label") ?? (node.querySelector(":scope > summary") ?? node).textContent.slice(0, 200);
  return (node.dataset.key ?? text.replace(/\d[\d,.]*/g, "")).replace(/\s+/g, " ").trim().slice(0, 60);
};

// Names of the parts that an element lies in, then its own; without numbers, which grow with the run.
const pathOf = (node) => {
  const names = [ownName(node)];
  for (let above = node.parentElement; above && above.id !== "page"; above = above.parentElement) {
    const name = (above.dataset.key ?? above.id).replace(/\s+/g, " ");
    if (name) names.unshift(name);
  }
  return names.join("/");
};

const keyed = (selector) => {
  const found = new Map();
  for (const node of document.querySelectorAll(`#page :is(${selector})`)) {
    const path = pathOf(node);
    let key = path;
    for (let number = 2; found.has(key); number += 1) key = `${path} ${number}`;
    found.set(key, node);
  }
  return found;
};

const isOpen = (node) => (node.tagName === "DETAILS" ? node.open : node.getAttribute("aria-expanded") === "true");

const toggleFold = (node) => {
  if (node.tagName !== "DETAILS") { node.click(); return; }
  node.open = !node.open;
  node.dispatchEvent(new Event("toggle"));  // now, so that what it fills in is there
};

const ofAddress = () => new Set(get("open").split("\n").filter(Boolean));
let unfolded = ofAddress();
let writing = 0;
let applying = false;

const noteFolds = (event) => {
  if (applying) return;
  if (event.type === "toggle" ? !event.target.matches?.("#page details") : !event.target.closest?.("#page button[aria-expanded]")) return;
  const here = keyed(FOLDS);
  const absent = [...unfolded].filter((key) => !here.has(key)).slice(-ABSENT);
  unfolded = new Set([...absent, ...[...here].filter(([, node]) => isOpen(node)).map(([key]) => key)]);
  clearTimeout(writing);  // browsers refuse to change an address many times a second
  writing = setTimeout(() => set({ open: [...unfolded].join("\n") }), 100);
};
addEventListener("toggle", noteFolds, { capture: true });
addEventListener("click", noteFolds);

// Opens what was open, also what lies inside of something that fills itself in once it is open.
export const applyFolds = () => {
  applying = true;
  for (let again = true, round = 0; again && round < 5; round += 1) {
    const wrong = [...keyed(FOLDS)].filter(([key, node]) => isOpen(node) !== unfolded.has(key));
    again = wrong.some(([key]) => unfolded.has(key));
    for (const [, node] of wrong) toggleFold(node);
  }
  applying = false;
};
watch(["open"], () => { unfolded = ofAddress(); applyFolds(); });

const topmost = () => [...document.getElementById("page").children].find((node) => (node.id || node.dataset.key) && node.getBoundingClientRect().bottom > 0);

// Remembers focus, selection and places; the function that it returns finds them again on a page that was built anew.
export const remember = () => {
  const active = document.activeElement;
  const stop = [...keyed(STOPS)].find(([, node]) => node === active)?.[0];
  const typed = active.matches("input[type=search]") ? [active.value, active.selectionStart, active.selectionEnd] : null;
  const reading = active.reading?.() ?? null;
  const scrolled = [...keyed(SCROLLED)].filter(([, node]) => node.scrollTop || node.scrollLeft).map(([key, node]) => [key, node.scrollTop, node.scrollLeft]);
  const mark = scrollY > 0 ? topmost() : null;
  const [name, top] = mark ? [mark.id || mark.dataset.key, mark.getBoundingClientRect().top] : [null, 0];
  return () => {
    const places = keyed(SCROLLED);
    for (const [key, down, right] of scrolled) places.get(key)?.scrollTo(right, down);
    const now = name && [...document.getElementById("page").children].find((node) => (node.id || node.dataset.key) === name);
    if (now) scrollBy(0, now.getBoundingClientRect().top - top);
    const node = active.isConnected ? null : keyed(STOPS).get(stop);
    if (!node) return;
    node.focus({ preventScroll: true });
    if (typed && node.matches("input")) {
      if (node.value !== typed[0]) { node.value = typed[0]; node.dispatchEvent(new Event("input")); }
      node.setSelectionRange(typed[1], typed[2]);
    }
    if (reading !== null) node.resume?.(reading);
  };
};
