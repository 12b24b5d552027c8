// How numbers are written on axes and beside points.

// As rlft.curves.text writes them: three digits, large ones with separators.
export const shown = (value, share = false) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (share) return `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size > 0 && size < 1e-3) return value.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
  return size === 0 ? "0.00" : value.toPrecision(3);
};

export const count = (value) => value.toLocaleString("en-US");

export const tickText = (value, step, share) => {
  if (share) return `${trim((100 * value).toFixed(Math.max(0, -Math.floor(Math.log10(100 * step) + 1e-9))))} %`;
  if (value === 0) return "0";
  const size = Math.max(Math.abs(value), step);
  if (size >= 1e5) return value.toExponential(1).replace("e+", "e");
  if (step < 1e-4) return value.toExponential(1);
  return value.toFixed(Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9))));
};

const trim = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text);
