// What an explanation looks like: both Gaussians in the dimensions that tell most, and the three parts of KL.

import { decimal, drawn, element } from "./dom.js";

const [WIDTH, HEIGHT, FLOOR] = [100, 46, 42];
const POINTS = 48;
const REACH = 3.2; // deviations of a Gaussian that are shown

export const PARTS = [
  ["log_determinant", "log determinant", "how much wider the document is"],
  ["trace", "trace", "spread of the query that the document does not allow for"],
  ["mahalanobis", "mahalanobis", "how far apart the means lie"],
];

const density = (x, mean, deviation) => Math.exp(-0.5 * ((x - mean) / deviation) ** 2) / deviation;

const curve = (mean, deviation, low, high, most) => {
  const points = [];
  for (let step = 0; step <= POINTS; step += 1) {
    // Closer together where it is steep, however narrow it is.
    const x = mean + REACH * deviation * ((2 * step) / POINTS - 1);
    const height = (FLOOR - 4) * (density(x, mean, deviation) / most);
    points.push(`${(((x - low) / (high - low)) * WIDTH).toFixed(2)} ${(FLOOR - height).toFixed(2)}`);
  }
  return `M${points.join("L")}Z`;
};

/** Two Gaussians, {mean, deviation} each, over one dimension. */
export const bells = (query, document) => {
  const low = Math.min(query.mean - REACH * query.deviation, document.mean - REACH * document.deviation);
  const high = Math.max(query.mean + REACH * query.deviation, document.mean + REACH * document.deviation);
  const most = 1 / Math.min(query.deviation, document.deviation);
  const line = (name, its) => drawn("path", { class: `bell ${name}`, d: curve(its.mean, its.deviation, low, high, most) });
  return drawn(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" },
    drawn("line", { class: "floor", x1: 0, x2: WIDTH, y1: FLOOR, y2: FLOOR }),
    line("document", document),
    line("query", query),
  );
};

/** Of each telling dimension: {dimension, contribution, query: {mean, deviation}, document: {mean, deviation}}. */
export const dimensionsOf = (explanation) =>
  explanation.dimensions.map((dimension, place) => ({
    dimension,
    contribution: explanation.contributions[place],
    query: { mean: explanation.query_means[place], deviation: Math.sqrt(explanation.query_variances[place]) },
    document: { mean: explanation.document_means[place], deviation: Math.sqrt(explanation.document_variances[place]) },
  }));

/** A small chart for each telling dimension. */
export const gaussians = (explanation) =>
  element(
    "ol",
    { class: "bells", "aria-label": "The dimensions that contribute most" },
    dimensionsOf(explanation).map(({ dimension, contribution, query, document }) =>
      element(
        "li",
        {},
        bells(query, document),
        element(
          "span",
          { class: "caption" },
          element("span", { class: "unseen" }, "Dimension "),
          element("span", { class: "dimension" }, String(dimension)),
          " ",
          element("b", {}, decimal(contribution)),
          element(
            "span",
            { class: "unseen" },
            ` nats: query ${decimal(query.mean)} ± ${decimal(query.deviation)}, ` +
              `document ${decimal(document.mean)} ± ${decimal(document.deviation)}`,
          ),
        ),
      ),
    ),
  );

/** How far the parts of these explanations reach to either side of zero: [below, above], for bars that compare. */
export const reachOf = (explanations) =>
  explanations.reduce(
    ([below, above], its) => {
      const values = PARTS.map(([name]) => its[name]);
      const total = (keep) => values.filter(keep).reduce((sum, value) => sum + value, 0);
      return [Math.min(below, total((value) => value < 0)), Math.max(above, total((value) => value > 0))];
    },
    [0, 0],
  );

/** The three parts of KL on either side of zero, in a bar and in numbers. */
export const parts = (explanation, [below, above]) => {
  const span = above - below || 1;
  const place = (value) => (100 * (value - below)) / span;
  let [left, right] = [0, 0];
  const pieces = PARTS.map(([name]) => {
    const value = explanation[name];
    const from = value < 0 ? (left += value) : right;
    if (value >= 0) right += value;
    return drawn("rect", { class: name, x: place(from), width: (100 * Math.abs(value)) / span, y: 1, height: 8 });
  });
  return element(
    "div",
    { class: "parts" },
    drawn(
      "svg",
      { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" },
      pieces,
      drawn("line", { class: "zero", x1: place(0), x2: place(0), y1: 0, y2: 10 }),
    ),
    element(
      "dl",
      {},
      PARTS.map(([name, label, meaning]) =>
        element(
          "div",
          { title: `${label}: ${meaning}, in nats` },
          element("dt", {}, element("span", { class: `swatch ${name}` }), label),
          element("dd", {}, decimal(explanation[name])),
        ),
      ),
    ),
  );
};

/** What the colours of the pictures stand for. */
export const legend = () =>
  element(
    "p",
    { class: "legend" },
    element("span", {}, element("span", { class: "swatch query" }), "query"),
    element("span", {}, element("span", { class: "swatch document" }), "document"),
  );
