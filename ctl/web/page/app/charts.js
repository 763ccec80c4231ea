// Graphs of the last hour. Chart.js comes from the node's package; without it the numbers are shown alone.

import { h, put, setText } from "./dom.js";
import { moment } from "./format.js";

let library = null;

function load() {
  library ??= import("/lib/chart.js/chart.esm.js").then(
    (module) => {
      module.Chart.register(...module.registerables);
      return module.Chart;
    },
    () => null,
  );
  return library;
}

/** A colour of the style sheet in the theme in force. */
function colour(name) {
  const probe = h("span", { class: `colour-${name}` });
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

const drawn = new Set();

/** After the theme has changed. */
export function recolour() {
  for (const each of drawn) each.recolour();
}

/** format(value): for people. Returns {element, update(values, end_s, step_s), close()}. */
export function graph({ title, format, tint = "accent", whole = false }) {
  const now = h("strong", null, "–");
  const range = h("span", { class: "quiet" });
  const canvas = h("canvas", { role: "img", "aria-label": title });
  const place = h("div", { class: "canvas", hidden: true }, canvas);
  const element = h("figure", { class: "graph" }, h("figcaption", null, h("span", null, title), now, range), place);
  let chart = null;
  let last = null;
  let closed = false;

  function options() {
    const text = colour("muted");
    const grid = colour("line");
    return {
      animation: false, responsive: true, maintainAspectRatio: false, normalized: true,
      interaction: { mode: "index", intersect: false },
      plugins: { legend: { display: false }, tooltip: { displayColors: false, callbacks: { label: (item) => format(item.raw), title: (items) => items[0]?.label ?? "" } } },
      elements: { point: { radius: 0, hitRadius: 8 }, line: { borderWidth: 1.5, tension: 0 } },
      scales: {
        x: { grid: { display: false, borderColor: grid }, ticks: { color: text, maxRotation: 0, autoSkip: true, maxTicksLimit: 5, callback(value) { return this.getLabelForValue(value).slice(-8, -3); } } },
        y: { beginAtZero: true, grace: "5%", grid: { color: grid, borderColor: grid }, ticks: { color: text, maxTicksLimit: 5, precision: whole ? 0 : undefined, callback: (value) => format(value) } },
      },
    };
  }

  async function draw() {
    const Chart = await load();
    if (!Chart || closed || !last) return;
    place.hidden = false;
    const { values, labels } = last;
    if (!chart) {
      const line = colour(tint);
      chart = new Chart(canvas, { type: "line", data: { labels, datasets: [{ data: values, borderColor: line, backgroundColor: line.replace("rgb(", "rgba(").replace(")", ", 0.12)"), fill: true, spanGaps: false }] }, options: options() });
      drawn.add(handle);
    } else {
      chart.data.labels = labels;
      chart.data.datasets[0].data = values;
      chart.update("none");
    }
  }

  const handle = {
    element,
    update(values, end_s, step_s) {
      const known = values.filter((each) => typeof each === "number");
      const latest = known.length ? values.findLast((each) => typeof each === "number") : null;
      setText(now, latest === null ? "–" : format(latest));
      const text = known.length ? `lowest ${format(Math.min(...known))}, highest ${format(Math.max(...known))}` : "nothing recorded yet";
      setText(range, text);
      canvas.setAttribute("aria-label", `${title}, last hour: now ${latest === null ? "unknown" : format(latest)}, ${text}`);
      last = { values, labels: values.map((_, at) => moment(end_s - (values.length - 1 - at) * step_s)) };
      draw();
    },
    recolour() {
      if (!chart) return;
      chart.destroy();
      chart = null;
      drawn.delete(handle);
      draw();
    },
    close() {
      closed = true;
      drawn.delete(handle);
      chart?.destroy();
    },
  };
  return handle;
}

/** Several graphs in a grid. kinds: {name of the series, title, format}. */
export function graphs(kinds) {
  const made = kinds.map((kind) => ({ ...kind, graph: graph(kind) }));
  const element = h("div", { class: "graphs" }, made.map((each) => each.graph.element));
  return {
    element,
    update(answer) {
      for (const each of made) each.graph.update(answer.series?.[each.name] ?? [], answer.end_s, answer.step_s);
    },
    problem: (message) => put(element, message),
    close: () => made.forEach((each) => each.graph.close()),
  };
}
