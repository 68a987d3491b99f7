"use strict";
(() => {
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const fail = () => { document.getElementById("fault").hidden = false; root.dataset.fault = "1"; };
  window.addEventListener("error", fail);
  document.addEventListener("securitypolicyviolation", fail);

  // Colours follow the page's, which follow the reader's system.
  const theme = () => {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: colour("--grid"), linecolor: colour("--line"), tickcolor: colour("--line"),
      zerolinecolor: colour("--grid"), showline: true, ticks: "outside",
    };
    return { layout: {
      font: { color: colour("--text"), family: 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif', size: 13 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: axis, yaxis: axis,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--text") },
      hoverlabel: { namelength: -1 },
    } };
  };
  // "Share chart" would send the figures to a server
  const config = {
    responsive: true, displaylogo: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d"],
  };

  if (!window.Plotly) { fail(); return; }
  Promise.all(plots.map((plot) => {
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    return Plotly.newPlot(plot, figure.data, { ...figure.layout, template: theme() }, config);
  })).then(() => { root.dataset.drawn = String(plots.length); }, fail);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of plots) Plotly.relayout(plot, { template: theme() });
  });
})();
