// Prometheus text as numbers, and what two readings of it say about the time between them.

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** The samples of /metrics: {name, labels, value} each. */
export const parse = (text) =>
  text
    .split("\n")
    .map((line) => LINE.exec(line))
    .filter((match) => match !== null)
    .map(([, name, labels = "", value]) => ({
      name,
      labels: Object.fromEntries([...labels.matchAll(LABEL)].map(([, label, its]) => [label, its])),
      value: value === "+Inf" ? Infinity : Number(value),
    }));

const isSearch = (route) => route === "/v1/search" || route === "/v1/search/batch" || route.endsWith("/similar");

const sum = (samples, name, keep = () => true) =>
  samples.reduce((total, each) => (each.name === name && keep(each.labels) ? total + each.value : total), 0);

/** What is charted, of one reading; `at` is in seconds. */
export const reading = (samples, at) => {
  const buckets = new Map();
  for (const { name, labels, value } of samples) {
    if (name !== "gaussearch_request_seconds_bucket" || !isSearch(labels.route)) continue;
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return {
    at,
    requests: sum(samples, "gaussearch_request_seconds_count", ({ route }) => isSearch(route)),
    queries: sum(samples, "gaussearch_batch_rows_sum"),
    batches: sum(samples, "gaussearch_batch_rows_count"),
    waiting: sum(samples, "gaussearch_queue_rows"),
    refused: sum(samples, "gaussearch_rejected_total"),
    buckets: [...buckets].sort(([a], [b]) => a - b),
  };
};

/**
 * The value below which a share of what a histogram counted lies: [[upper bound, count up to it], ...] with rising
 * bounds. Within a bucket values are taken to lie evenly; null where nothing was counted.
 */
export const percentile = (buckets, share) => {
  const total = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (!(total > 0)) return null;
  const wanted = share * total;
  let [below, before] = [0, 0];
  for (const [bound, count] of buckets) {
    if (count >= wanted && count > before) {
      // Of what is above the last bound nothing is known but that.
      return bound === Infinity ? below : below + ((bound - below) * (wanted - before)) / (count - before);
    }
    [below, before] = [bound, count];
  }
  return below;
};

/** What happened between two readings; null where the service has started anew in between. */
export const between = (earlier, later) => {
  const seconds = later.at - earlier.at;
  const counted = ["requests", "queries", "batches", "refused"];
  if (!(seconds > 0) || counted.some((name) => later[name] < earlier[name])) return null;
  const known = new Map(earlier.buckets);
  const buckets = later.buckets.map(([bound, count]) => [bound, count - (known.get(bound) ?? 0)]);
  const batches = later.batches - earlier.batches;
  const inMilliseconds = (share) => {
    const found = percentile(buckets, share);
    return found === null ? null : 1000 * found;
  };
  return {
    at: later.at,
    requests: (later.requests - earlier.requests) / seconds,
    queries: (later.queries - earlier.queries) / seconds,
    p50: inMilliseconds(0.5),
    p95: inMilliseconds(0.95),
    p99: inMilliseconds(0.99),
    batch: batches > 0 ? (later.queries - earlier.queries) / batches : null,
    waiting: later.waiting,
    refused: (later.refused - earlier.refused) / seconds,
  };
};
