// From values to places, and round numbers between two ends.

export const linear = (low, high, from, to) => {
  const width = high - low || 1;
  const scale = (value) => from + ((value - low) / width) * (to - from);
  scale.back = (place) => low + ((place - from) / (to - from || 1)) * width;
  return scale;
};

export const ticks = (low, high, most, whole = false) => {
  const rough = (high - low || 1) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999);
  if (whole) step = Math.max(1, Math.round(step));
  const values = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) {
    values.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  }
  return { values, step };
};

// The lowest and highest value that a chart has to hold within a range of steps.
export const extent = (chart, from, to) => {
  let low = chart.axis === "free" ? Infinity : 0;
  let high = -Infinity;
  const see = (value) => {
    if (value === null || value === undefined) return;
    if (value < low) low = value;
    if (value > high) high = value;
  };
  const stacked = new Map();
  for (const mark of chart.marks) {
    if (mark.kind === "level") { see(mark.y); continue; }
    const piled = mark.kind === "bars" || mark.kind === "area";
    mark.x.forEach((x, index) => {
      if (x < from || x > to) return;
      if (piled) {
        stacked.set(x, (stacked.get(x) ?? 0) + (mark.y[index] ?? 0));
        see(stacked.get(x));
      } else see(mark.y[index]);
      if (mark.low) { see(mark.low[index]); see(mark.high[index]); }
    });
    if (mark.faint) mark.faint.x.forEach((x, index) => { if (x >= from && x <= to) see(mark.faint.y[index]); });
  }
  if (!(high >= low)) return [0, 1];
  if (high === low) return low === 0 ? [0, 1] : [Math.min(0, low), Math.max(0, high) || 1];
  const air = 0.05 * (high - low);
  const near = low > 0 && low < 0.4 * high ? 0 : low;  // close to 0: 0 is on the axis
  return [near < 0 || (chart.axis === "free" && near !== 0) ? near - air : near, high + air];
};
