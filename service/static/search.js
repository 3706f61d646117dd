// The search view: what is asked, by form or by address.

import { showAnswer, showFailure, welcome } from "./answer.js";
import * as api from "./api.js";
import { byId, element, whole } from "./dom.js";
import { currentFilter, isObject, openFilter, showFilter, startFilters } from "./filters.js";
import { parse, write } from "./json.js";

const PLACEHOLDERS = {
  text: "What are you looking for?",
  document: "Id of a document",
  gaussian: '{"mean": [...], "variance": [...]}',
};
const LABELS = { text: "Text", document: "Id of a document", gaussian: "Gaussian as JSON" };
const LONGEST_TITLE = 60;
const TOP_K = 10;
const COUNT = /^[1-9]\d{0,5}$/;
const RETRIED = new Set(["not_ready"]);

let index = null;
let running = null;
let retry = 0;
let askForKey = () => {};
/** Whether it has been said what to search with, by a hand or an address. */
let decided = false;

const modes = () => [...document.querySelectorAll('input[name="mode"]')];
const mode = () => modes().find((each) => each.checked).value;

const setMode = (wanted) => {
  for (const each of modes()) each.checked = each.value === wanted;
  const hints = {
    text: `Encoded by ${index?.model?.name ?? "the service's model"}, which says how sure it is.`,
    document: "The document's own Gaussian is the query.",
    gaussian: `${index ? `${whole(index.k)} means and as many variances` : "Means and variances"}, or any body of a search. Paste it: the box knows JSON when it sees it.`,
  };
  // Before it is known what there is to search with, it may be something else.
  byId("query").placeholder = index || decided ? PLACEHOLDERS[wanted] : "";
  byId("query").classList.toggle("code", wanted === "gaussian");
  byId("query-label").textContent = index || decided ? LABELS[wanted] : "Query";
  byId("query-hint").textContent = hints[wanted];
};

/** What the form asks for; SyntaxError where its filter is none. */
const asked = () => ({
  mode: mode(),
  query: byId("query").value.trim(),
  topK: Number(byId("top-k").value),
  exact: byId("exact").checked,
  filter: currentFilter(),
});

const addressOf = ({ mode: its, query, topK, exact, filter }) => {
  const fields = new URLSearchParams({ by: its });
  // A Gaussian is too long for an address; the browser's history has it.
  if (its !== "gaussian") fields.set("q", query);
  if (topK !== TOP_K) fields.set("k", topK);
  if (exact) fields.set("exact", "1");
  if (filter) fields.set("filter", write(filter));
  return `#search?${fields}`;
};

const readAddress = (fields) => {
  let filter = null;
  try {
    filter = parse(fields.get("filter") ?? "null");
  } catch {
    // An address that somebody has cut short.
  }
  const by = fields.get("by");
  const k = fields.get("k") ?? "";
  return {
    mode: Object.hasOwn(PLACEHOLDERS, by) ? by : index?.reads_text ? "text" : "document",
    query: fields.get("q") ?? "",
    topK: COUNT.test(k) ? Number(k) : TOP_K,
    exact: fields.get("exact") === "1",
    filter: isObject(filter) ? filter : null,
  };
};

const showAsked = ({ mode: its, query, topK, exact, filter }) => {
  setMode(its);
  byId("query").value = query;
  if (![...byId("top-k").options].some((each) => each.value === String(topK))) {
    byId("top-k").append(element("option", {}, String(topK)));
  }
  byId("top-k").value = String(topK);
  byId("exact").checked = exact;
  showFilter(filter);
};

const request = async ({ mode: its, query, topK, exact, filter }, signal) => {
  const options = { top_k: topK, explain: true, ...(exact ? { exact } : {}), ...(filter ? { filter } : {}) };
  if (its === "document") {
    // With itself, as what is searched for is to be shown; unless there is no room for one more.
    const room = topK < (index?.limits.max_top_k ?? Infinity);
    return api.searchSimilar(query, { ...options, ...(room ? { top_k: topK + 1, include_self: true } : {}) }, signal);
  }
  if (its === "text") return api.search({ ...options, text: query }, signal);
  let given;
  try {
    given = parse(query);
    if (!isObject(given)) throw new SyntaxError("it is no object");
  } catch (problem) {
    throw new api.Failure({
      code: "malformed_json",
      title: "This is not JSON of a Gaussian",
      detail: `${problem.message}. Write {"mean": [...], "variance": [...]}`,
    });
  }
  return api.search({ ...options, ...given, explain: true, with_payload: true }, signal);
};

/** Ends the running search, and whatever waits to search again: nobody looks at its results. */
export const leaveSearch = () => {
  clearTimeout(retry);
  running?.abort();
  running = null;
  byId("status").textContent = "";
  byId("found").removeAttribute("aria-busy");
};

const run = async (its) => {
  leaveSearch();
  const mine = new AbortController();
  running = mine;
  decided = true;
  document.title = its.mode === "gaussian" ? "Gaussearch" : `${its.query.slice(0, LONGEST_TITLE)} · Gaussearch`;
  byId("status").textContent = "Searching…";
  byId("found").setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const answer = await request(its, mine.signal);
    if (running !== mine) return;
    showAnswer(its, answer, performance.now() - began, index, (id) => submit({ ...its, mode: "document", query: id }));
  } catch (failure) {
    if (running !== mine || failure.name === "AbortError") return;
    if (!(failure instanceof api.Failure)) throw failure;
    byId("found").replaceChildren();
    // With a key it goes on, unless something else is looked at by then.
    if (failure.code === "unauthorized") askForKey(() => running === mine && run(its));
    showFailure(failure, () => run(its));
    if (RETRIED.has(failure.code)) retry = setTimeout(run, 1000 * (failure.retryAfter ?? 1), its);
  } finally {
    if (running === mine) byId("found").removeAttribute("aria-busy");
  }
};

const submit = (its) => {
  showAsked(its);
  try {
    history.pushState(its, "", addressOf(its));
  } catch {
    // More than the browser keeps in its history: then it is not in there.
    history.pushState(null, "", addressOf({ ...its, query: "" }));
  }
  scrollTo(0, 0);
  return run(its);
};

const submitForm = () => {
  let its;
  try {
    its = asked();
  } catch {
    openFilter(true);
    byId("filter").focus();
    return;
  }
  if (its.query) submit(its);
  else byId("query").focus();
};

/** A Gaussian somewhere, to begin with: what lies near it is a document to go on from. */
const anywhere = () => {
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  const mean = Array.from({ length: index.k }, () => Number(normal().toFixed(3)));
  const query = JSON.stringify({ mean, variance: Array(index.k).fill(1) });
  submit({ ...asked(), mode: "gaussian", query });
};

/** Shows what an address asks for: a search, or an invitation to one. */
export const showSearch = (fields, state) => {
  const its = state?.mode ? state : readAddress(fields);
  decided ||= fields.has("by");
  showAsked(its);
  if (its.query) {
    run(its);
    return;
  }
  byId("error").replaceChildren();
  byId("found").replaceChildren(...(index ? [welcome(index, anywhere)] : []));
};

/** Takes notice of what the index is: whether there is a model, and what may be asked of it. */
export const learnIndex = (described) => {
  const first = index === null;
  index = described;
  byId("search-form").classList.remove("learning");
  byId("mode-text").hidden = !index.reads_text;
  byId("exact-option").hidden = index.kind === "flat";
  for (const each of byId("top-k").options) each.hidden = Number(each.value) > index.limits.max_top_k;
  setMode(first && index.reads_text && !decided ? "text" : mode());
  const isIdle = byId("found").querySelector(".welcome") !== null || (first && running === null);
  if (isIdle) byId("found").replaceChildren(welcome(index, anywhere));
};

/** `needKey` asks for a key and then calls what it is given. */
export const startSearch = (needKey) => {
  askForKey = needKey;
  startFilters(() => {
    if (byId("query").value.trim() && byId("found").querySelector(".facts")) submitForm();
  });
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submitForm();
  });
  for (const each of modes()) {
    each.addEventListener("change", () => {
      decided = true;
      setMode(each.value);
      byId("query").focus();
    });
  }
  for (const id of ["top-k", "exact"]) {
    byId(id).addEventListener("change", () => {
      if (byId("found").querySelector(".facts")) submitForm();
    });
  }
  const box = byId("query");
  box.addEventListener("input", () => {
    if (!box.value.trimStart().startsWith("{") || mode() === "gaussian") return;
    decided = true;
    setMode("gaussian");
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submitForm();
    } else if (event.key === "ArrowDown" && mode() !== "gaussian") {
      const first = byId("found").querySelector('.result[tabindex="0"]');
      if (!first) return;
      event.preventDefault();
      first.focus();
    }
  });
};
