"use strict";
// Draws the charts of the page. Data comes as plotly.js traces; the look comes from the page's style sheet.
(() => {
  const { steps, figures } = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];

  const look = () => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    return {
      "font.color": color("--muted"),
      "xaxis.gridcolor": color("--grid"),
      "yaxis.gridcolor": color("--grid"),
      "xaxis.linecolor": color("--line"),
      "hoverlabel.bgcolor": color("--panel"),
      "hoverlabel.bordercolor": color("--line"),
      "hoverlabel.font.color": color("--text"),
    };
  };

  const layout = (figure) => {
    const named = figure.data.filter((trace) => trace.showlegend !== false && trace.name !== "events");
    const { yaxis, ...rest } = figure.layout;
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 10, t: named.length > 1 ? 24 : 8, b: 22 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 11.5 },
      xaxis: { range: steps, showline: true, zeroline: false, tickformat: "d", nticks: figure.wide ? 12 : 6,
               hoverformat: "d", automargin: true, unifiedhovertitle: { text: "step %{x:d}" },
               title: figure.wide ? { text: "step", standoff: 4, font: { size: 11.5 } } : undefined },
      yaxis: { zeroline: false, automargin: true, nticks: figure.wide ? 7 : 5, hoverformat: ".4~g",
               exponentformat: "power",               fixedrange: true, ...yaxis },
      hovermode: "x unified",
      hoverlabel: { font: { size: 12 } },
      dragmode: "zoom",
      showlegend: named.length > 1,
      legend: { orientation: "h", traceorder: "normal", x: 0, y: 1.01, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)", font: { size: 11 } },
      ...rest,
    };
  };

  // Zooming one chart zooms all of them: they have the same steps.
  let following = false;
  const follow = (source, change) => {
    const range = change["xaxis.autorange"] ? steps
      : change["xaxis.range"] ?? [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (following || range[0] === undefined) return;
    following = true;
    const others = change["xaxis.autorange"] ? plots : plots.filter((plot) => plot !== source);
    Promise.all(others.map((plot) => Plotly.relayout(plot, { "xaxis.range": [...range] })))
      .finally(() => { following = false; });
  };

  const options = { displayModeBar: false, displaylogo: false, responsive: true, showTips: false };
  plots.forEach((plot, index) => {
    Plotly.newPlot(plot, figures[index].data, layout(figures[index]), options)
      .then(() => Plotly.relayout(plot, look()))
      .then(() => plot.on("plotly_relayout", (change) => follow(plot, change)));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    plots.forEach((plot) => Plotly.relayout(plot, look()));
  });
})();
