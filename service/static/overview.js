// The view of the index: what it is, how well it searches, and how its last changes went.

import { byId, bytes, decimal, element, whole } from "./dom.js";

const LONG = 12;

const tile = (name, value, note = "") =>
  element(
    "li",
    {},
    element("span", { class: "name" }, name),
    element("b", { class: value.length > LONG ? "long" : null }, value),
    note ? element("span", { class: "note" }, note) : null,
  );

const tiles = (index) => {
  const recall = index.measured_recall;
  return [
    tile("Documents", whole(index.documents), bytes(index.bytes)),
    tile("Dimensions", whole(index.k), `${index.encoding} vectors`),
    tile("Kind", index.kind, index.kind === "flat" ? "every result is proved" : "scores are exact"),
    recall
      ? tile(`Recall@${recall.at}`, decimal(recall.recall, 3), `${decimal(recall.low, 3)} to ${decimal(recall.high, 3)}, 95% confidence`)
      : tile("Recall", index.kind === "flat" ? "1" : "–", index.kind === "flat" ? "by proof" : "not measured"),
    tile("Generation", whole(index.generation), `${whole(index.changes)} ${index.changes === 1 ? "change" : "changes"} since built`),
    index.model ? tile("Model", index.model.name, `encoder ${index.model.encoder}`) : tile("Model", "none", "queries are Gaussians"),
  ];
};

const yes = (value) => (value ? "yes" : "no");

const table = (title, rows, kind = "") =>
  element(
    "section",
    { class: `facts-of ${kind}` },
    element("h2", {}, title),
    element(
      "dl",
      {},
      rows
        .filter(([, value]) => value !== null && value !== undefined)
        .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    ),
  );

const pairs = (list) => (list ?? []).map(([topK, count]) => `${whole(count)} for top ${whole(topK)}`).join(", ") || null;

const codes = ({ codes: its }) =>
  its
    ? [
        ["Bytes of a code", whole(its.bytes_per_document)],
        ["Projected dimensions", whole(its.dimensions)],
        ["Candidates", pairs(its.candidates)],
        ["Breadth", decimal(its.breadth)],
        ["Graph", its.graph && `M ${its.graph.m}, efConstruction ${its.graph.ef_construction}`],
        ["Lists", its.lists && whole(its.lists.lists)],
        ["Lists of a query", its.lists && pairs(its.lists.nprobe)],
        ["Factory", its.factory && its.factory.factory],
      ]
    : [];

const recall = ({ measured_recall: its }) =>
  its
    ? [
        ["Measured with", `${whole(its.queries)} ${its.source}`],
        ["Target recall", decimal(its.target, 3)],
      ]
    : [];

const drift = ({ drift: its }) =>
  its ? [["Recall of the newest", `${decimal(its.recall, 3)} (${decimal(its.low, 3)} to ${decimal(its.high, 3)}), after ${whole(its.at)} were written`]] : [];

const limit = (name, value) => (name.endsWith("_bytes") ? bytes(value) : name.endsWith("_ms") ? `${whole(value)} ms` : name.endsWith("_seconds") ? `${decimal(value, 0)} s` : whole(value));

const tables = (index) => [
  table("Searching", [
    ["Kind", index.kind],
    ["Why this kind", index.reason],
    ["Device", index.device],
    ["Precision of the scan", index.precision],
    ...recall(index),
    ...codes(index),
  ]),
  table("Generations", [
    ["Generation", whole(index.generation)],
    ["Built", new Date(index.created_at).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" })],
    ["Segments", whole(index.segments)],
    ["Rows that wait to be compacted away", whole(index.deleted_rows)],
    ["Compaction under way", yes(index.compaction.running)],
    ["Last compaction failed", index.compaction.last_error],
    ["Generations refused", whole(index.reload.failures)],
    ["Last refused because", index.reload.last_error],
    ["Rebuild due", index.rebuild_due ?? "no"],
    ...drift(index),
  ]),
  index.model
    ? table("Model", [
        ["Name", index.model.name],
        ["Encoder", index.model.encoder],
        ["Dimensions", whole(index.model.k)],
        ["Fingerprint", index.model.fingerprint],
      ])
    : null,
  table("Limits", Object.entries(index.limits).map(([name, value]) => [name, limit(name, value)]), "wide"),
].filter(Boolean);

/** What deserves a look: a generation that was refused, a rebuild that is due. */
const notices = (index) =>
  [
    index.reload.last_error && ["bad", `A newer generation cannot be served, this one stays: ${index.reload.last_error}`],
    index.compaction.last_error && ["bad", `The last compaction failed: ${index.compaction.last_error}`],
    index.rebuild_due && ["fair", `The index should be rebuilt: ${index.rebuild_due}`],
    index.compaction.running && ["fair", "The index is being compacted."],
  ]
    .filter(Boolean)
    .map(([kind, text]) => element("p", { class: `notice ${kind}` }, text));

/** Shows what GET /v1/index answers; what has not changed stays as it is, with whatever is selected in it. */
export const showIndex = (index) => {
  const said = JSON.stringify(index);
  if (byId("facts").dataset.said === said) return;
  byId("facts").dataset.said = said;
  byId("index-title").textContent = index.name;
  byId("index-since").textContent = `Gaussearch ${index.version}`;
  byId("index-state").replaceChildren(...notices(index));
  byId("tiles").replaceChildren(...tiles(index));
  byId("facts").replaceChildren(...tables(index));
};
