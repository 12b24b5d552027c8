// Elements made from plain data. Texts are always text nodes: nothing that a model wrote is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

const fill = (node, props, children) => {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "hidden" || name === "disabled" || name === "open" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== undefined && child !== null && child !== false && child !== "") node.append(child);
  }
  return node;
};

export const el = (tag, props = {}, ...children) => fill(document.createElement(tag), props, children);

export const svg = (tag, props = {}, ...children) => fill(document.createElementNS(SVG, tag), props, children);

export const replace = (node, ...children) => {
  node.replaceChildren();
  return fill(node, {}, children);
};

export const button = (label, onclick, props = {}) => el("button", { type: "button", onclick, ...props }, label);

// A button that copies a text, and says so; where the browser refuses it selects the text's element instead.
export const copyButton = (text, label = "copy") => {
  const node = button(label, async () => {
    try {
      await navigator.clipboard.writeText(text);
      node.textContent = "copied";
    } catch {
      const area = el("textarea", { class: "offscreen" });
      area.value = text;
      document.body.append(area);
      area.select();
      node.textContent = document.execCommand("copy") ? "copied" : "select it and copy";
      area.remove();
    }
    setTimeout(() => { node.textContent = label; }, 1500);
  }, { class: "quiet" });
  return node;
};
