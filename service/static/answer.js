// What is answered to a search: its results and what proves them, why it failed, or that nothing is asked yet.

import { byId, decimal, element, milliseconds, sentence, stopped, whole } from "./dom.js";
import { addCondition, learnFields } from "./filters.js";
import { bells, legend } from "./picture.js";
import { resultList } from "./results.js";

/** Whether the same request may do better later. */
const isPassing = ({ code, status }) => code === "unreachable" || status === 429 || status >= 500;

/** Puts a failure where it can be read and heard; `again` does once more what failed. */
export const showFailure = (failure, again) => {
  byId("status").textContent = "";
  const waits = failure.retryAfter !== null ? ` Try again in ${decimal(failure.retryAfter, 0)} s.` : "";
  // What is wrong with a request may begin with the name of a field, which stays as it is written.
  const detail = isPassing(failure) ? sentence(failure.detail) : stopped(failure.detail);
  byId("error").replaceChildren(
    element(
      "div",
      { class: "failure" },
      element("h2", {}, failure.title),
      element("p", {}, `${detail}${waits}`),
      element(
        "p",
        { class: "muted" },
        element("code", {}, failure.code),
        failure.requestId ? ` in request ${failure.requestId}` : "",
      ),
      isPassing(failure) ? element("button", { type: "button", onclick: again }, "Try again") : null,
    ),
  );
};

const fact = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value));

const PROOFS = {
  bound: "The scan's rounding-error bound proves it: no document that was left out scores higher.",
  exhaustive: "Every document that may be found has been scored in float64.",
};

const MISSING = "Scores are exact; a document that the scan has not found may be missing. Scan everything for a proof.";

const certificate = (search, index) => {
  if (!search) return null;
  const measured = index?.measured_recall;
  const recall = measured ? ` · measured recall@${measured.at} ${decimal(measured.recall, 3)}` : "";
  const [kind, name, why] = search.proven
    ? ["good", "✓ Proven exact", PROOFS[search.proof] ?? ""]
    : ["fair", `Not proven${recall}`, MISSING];
  return element(
    "details",
    { class: "certificate" },
    element("summary", { class: `badge ${kind}` }, name),
    element("p", {}, why),
  );
};

const facts = (answer, count, took, index) => {
  const search = answer.search;
  return element(
    "div",
    { class: "facts" },
    certificate(search, index),
    element(
      "dl",
      {},
      fact("Results", whole(count)),
      fact("Service", milliseconds(answer.took_ms)),
      fact("Round trip", milliseconds(took)),
      search && search.scanned ? fact("Scanned", whole(search.scanned)) : null,
      search ? fact("Scored exactly", whole(search.candidates)) : null,
      answer.matched !== undefined && answer.matched !== null ? fact("Pass the filter", whole(answer.matched)) : null,
      fact("Generation", whole(answer.index.generation)),
    ),
    legend(),
  );
};

const uncertaintyOf = (question, answer) => {
  if (answer.uncertainty) return answer.uncertainty;
  if (question.mode !== "gaussian") return null;
  const given = JSON.parse(question.query);
  const variance = Array.isArray(given.logvar) ? given.logvar.map(Math.exp) : given.variance;
  if (!Array.isArray(variance) || !variance.length) return null;
  return {
    log_determinant: variance.reduce((sum, each) => sum + Math.log(each), 0),
    mean_variance: variance.reduce((sum, each) => sum + each, 0) / variance.length,
  };
};

/** What was searched for: a document's text, or how uncertain the query is. */
const question = (its, answer, self, index) => {
  const uncertainty = uncertaintyOf(its, answer);
  const payload = Object.values(self?.payload ?? {}).find((value) => typeof value === "string");
  const said = { text: its.query, document: payload, gaussian: `A Gaussian over ${whole(index?.k ?? 0)} dimensions` };
  return element(
    "aside",
    { class: "question", "aria-label": "Query" },
    element("h2", {}, its.mode === "document" ? `More like ${its.query}` : "Query"),
    said[its.mode] ? element("p", {}, said[its.mode]) : null,
    uncertainty
      ? element(
          "dl",
          {},
          fact("Log determinant", decimal(uncertainty.log_determinant)),
          fact("Mean variance", decimal(uncertainty.mean_variance, 4)),
        )
      : null,
  );
};

const nothing = (its, index) =>
  element(
    "div",
    { class: "nothing" },
    element("h2", {}, "No document is found"),
    element(
      "p",
      {},
      its.filter
        ? "The filter lets none through: take a condition away."
        : index?.documents === 0
          ? "The index holds no documents yet."
          : "There is nothing to show for this query.",
    ),
  );

/** Shows the answer to a question, which took so many milliseconds; `similar` searches with a document. */
export const showAnswer = (its, answer, took, index, similar) => {
  const self = its.mode === "document" ? answer.results.find((each) => each.id === its.query) : undefined;
  const results = answer.results.filter((each) => each !== self);
  if (its.mode === "document") results.splice(its.topK);
  learnFields([...results, ...(self ? [self] : [])]);
  byId("error").replaceChildren();
  const actions = {
    similar,
    filter: (field, value) => addCondition(field, "is", [value]),
  };
  byId("found").replaceChildren(
    question(its, answer, self, index),
    facts(answer, results.length, took, index),
    results.length ? resultList(results, actions) : nothing(its, index),
  );
  const proven = answer.search ? (answer.search.proven ? ", proven exact" : ", not proven") : "";
  const counted = results.length === 1 ? "1 result" : `${whole(results.length)} results`;
  byId("status").textContent = `${counted} in ${milliseconds(answer.took_ms)}${proven}`;
};

/** An invitation to a search; `anywhere` begins one without a query. */
export const welcome = (index, anywhere) =>
  element(
    "div",
    { class: "welcome" },
    bells({ mean: -0.8, deviation: 1 }, { mean: 1.1, deviation: 1.7 }),
    element("h2", {}, "Documents and queries are Gaussians"),
    element(
      "p",
      {},
      "Each has a mean and, in every dimension, a variance that says how sure it is. The best document is the one from " +
        "which the query diverges least: the largest −KL(query ‖ document). Every result shows why it scores as it does.",
    ),
    index?.documents
      ? element("button", { type: "button", onclick: anywhere }, "Show me some documents")
      : null,
  );
