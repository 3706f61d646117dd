// Live charts of /metrics: a reading every second, and what happened between it and the one before.

import { fetchMetrics } from "./api.js";
import { byId, decimal, element } from "./dom.js";
import { between, parse, reading } from "./metrics.js";

const PERIOD = 1000;
const KEPT = 180;
const HEIGHT = 170;
const LEAST = 60; // seconds that a chart shows, however few have passed

const CHARTS = [
  {
    title: "Throughput",
    unit: "a second",
    series: [
      ["queries", "queries", "--query"],
      ["requests", "requests", "--document"],
    ],
  },
  {
    title: "Latency",
    unit: "ms",
    series: [
      ["p50", "median", "--query"],
      ["p95", "95%", "--trace"],
      ["p99", "99%", "--mahalanobis"],
    ],
  },
  { title: "Batch", unit: "queries searched together", series: [["batch", "mean", "--query"]] },
  {
    title: "Queue",
    unit: "queries",
    series: [
      ["waiting", "waiting", "--query"],
      ["refused", "refused a second", "--bad"],
    ],
  },
];

const history = [];
let last = null;
let timer = 0;
let turn = 0;
let shown = false;
let paused = false;
let drawnCharts = [];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const options = (chart, width) => {
  const axis = {
    stroke: colour("--muted"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
    font: `11px ${getComputedStyle(document.body).fontFamily}`,
  };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    padding: [8, 26, 0, 0],
    scales: { x: { time: true }, y: { range: (_, __, most) => [0, Math.max(1, (most ?? 0) * 1.15)] } },
    axes: [
      { ...axis, space: 70, size: 26, grid: { show: false }, values: (_, at) => at.map(clock) },
      { ...axis, size: 44, space: 34 },
    ],
    series: [
      {},
      ...chart.series.map(([, label, name], at) => ({
        label,
        // What lies under another line of the same numbers shows through it.
        dash: at ? [5, 3] : undefined,
        stroke: colour(name),
        width: 1.5,
        spanGaps: false,
        points: { show: false },
      })),
    ],
  };
};

const clock = (seconds) => new Date(1000 * seconds).toTimeString().slice(0, 8);

const dataOf = (chart) => {
  const end = history.length ? history[history.length - 1].at : Date.now() / 1000;
  // Nothing, at the beginning, where less has passed than is shown.
  const before = history.length && end - history[0].at >= LEAST ? [] : [end - LEAST];
  const shownAt = [...before, ...history.map((each) => each.at), ...(history.length ? [] : [end])];
  const values = (name) => shownAt.map((_, at) => history[at - before.length]?.[name] ?? null);
  return [shownAt, ...chart.series.map(([name]) => values(name))];
};

const draw = () => {
  for (const { plot, chart, place, numbers } of drawnCharts) {
    plot?.destroy();
    place.replaceChildren();
    const width = place.clientWidth;
    const made = width ? new window.uPlot(options(chart, width), dataOf(chart), place) : null;
    drawnCharts[CHARTS.indexOf(chart)] = { plot: made, chart, place, numbers };
  }
};

const update = () => {
  const now = history[history.length - 1] ?? {};
  for (const { plot, chart, place, numbers } of drawnCharts) {
    plot?.setData(dataOf(chart));
    const said = chart.series.map(([name, label], at) => {
      const value = now[name] === null || now[name] === undefined ? "–" : decimal(now[name], 1);
      numbers[at].textContent = value;
      return `${label} ${value}`;
    });
    place.setAttribute("aria-label", `${chart.title}, ${chart.unit}, over the last minutes; now ${said.join(", ")}`);
  }
};

const build = () => {
  drawnCharts = CHARTS.map((chart) => {
    const numbers = chart.series.map(() => element("b", {}, "–"));
    const place = element("div", { class: "plot", role: "img", "aria-label": chart.title });
    const figure = element(
      "figure",
      {},
      element("figcaption", {}, element("h3", {}, chart.title), element("span", { class: "muted" }, chart.unit)),
      place,
      element(
        "p",
        { class: "legend" },
        chart.series.map(([, label, name], at) =>
          element("span", {}, element("span", { class: `swatch ${name.slice(2)}` }), `${label} `, numbers[at]),
        ),
      ),
    );
    byId("charts").append(figure);
    return { plot: null, chart, place, numbers };
  });
  draw();
};

const tick = async () => {
  clearTimeout(timer);
  turn += 1;
  const mine = turn;
  if (!shown || paused || document.hidden) return;
  try {
    const text = await fetchMetrics();
    if (mine !== turn) return;
    const read = reading(parse(text), Date.now() / 1000);
    const happened = last ? between(last, read) : null;
    last = read;
    if (happened) history.push(happened);
    history.splice(0, history.length - KEPT);
    update();
  } catch {
    // What the service says of itself says the view beside this; a gap is a gap.
    last = null;
  }
  if (mine === turn) timer = setTimeout(tick, PERIOD);
};

/** Begins or stops to read; a reading costs the service a few milliseconds, and nobody sees what is hidden. */
export const showCharts = (wanted) => {
  shown = wanted;
  if (!shown) {
    tick();
    return;
  }
  if (!drawnCharts.length) build();
  else draw();
  tick();
};

export const startCharts = () => {
  byId("pause").addEventListener("click", () => {
    paused = !paused;
    last = null;
    byId("pause").setAttribute("aria-pressed", String(paused));
    byId("pause").textContent = paused ? "Go on" : "Pause";
    tick();
  });
  document.addEventListener("visibilitychange", tick);
  document.addEventListener("theme", draw);
  addEventListener("resize", draw);
};
