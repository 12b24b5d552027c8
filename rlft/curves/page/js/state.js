// What is looked at, kept in the address behind the #, so that a copied address shows the same.

const values = new URLSearchParams(location.hash.slice(1));
const listeners = new Map();

export const get = (name) => values.get(name) ?? "";

export const set = (changes) => {
  let changed = [];
  for (const [name, value] of Object.entries(changes)) {
    const text = value === null || value === undefined ? "" : String(value);
    if (text === get(name)) continue;
    if (text) values.set(name, text);
    else values.delete(name);
    changed.push(name);
  }
  if (!changed.length) return;
  const hash = values.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  tell(changed);
};

// Calls `listener` whenever one of some names has changed.
export const watch = (names, listener) => {
  for (const name of names) listeners.set(name, [...(listeners.get(name) ?? []), listener]);
};

const kept = new Map();

// From now on `forget` drops what is watched after this; what the modules themselves watch stays.
export const keepWatchers = () => { for (const [name, each] of listeners) kept.set(name, each); };

export const forget = () => {
  listeners.clear();
  for (const [name, each] of kept) listeners.set(name, each);
};

const tell = (names) => {
  const called = new Set(names.flatMap((name) => listeners.get(name) ?? []));
  for (const listener of called) listener();
};

addEventListener("hashchange", () => {
  const now = new URLSearchParams(location.hash.slice(1));
  const names = new Set([...values.keys(), ...now.keys()]);
  const changed = [...names].filter((name) => values.get(name) !== now.get(name));
  for (const name of [...values.keys()]) values.delete(name);
  for (const [name, value] of now) values.set(name, value);
  tell(changed);
});
