// The list of results: what is shown of each, and moving among them by keyboard.

import { decimal, element, shown } from "./dom.js";
import { dimensionsOf, gaussians, parts, reachOf } from "./picture.js";

const TITLES = ["title", "name", "heading", "headline"];
const TEXTS = ["text", "body", "abstract", "content", "passage", "description", "definition", "summary"];
const MOST_FIELDS = 6;
const LONGEST_CHIP = 60;

const isText = (value) => typeof value === "string" && value.trim() !== "";

/** Which fields of a payload are its title and its text: by their names, else the longest text is the text. */
const headline = (payload) => {
  const title = TITLES.find((name) => isText(payload[name]));
  const named = TEXTS.find((name) => isText(payload[name]));
  const texts = Object.keys(payload).filter((name) => name !== title && isText(payload[name]));
  const longest = texts.sort((a, b) => payload[b].length - payload[a].length)[0];
  return { title, text: named ?? longest };
};

const isScalar = (value) => ["string", "number", "bigint", "boolean"].includes(typeof value);

/** Buttons for fields whose values make good filters. */
const chips = (payload, left, onFilter) =>
  Object.entries(payload)
    .filter(([name]) => !left.includes(name))
    .flatMap(([name, value]) => (Array.isArray(value) ? value.map((its) => [name, its]) : [[name, value]]))
    .filter(([, value]) => isScalar(value) && String(value).length <= LONGEST_CHIP)
    .slice(0, MOST_FIELDS)
    .map(([name, value]) =>
      element(
        "li",
        {},
        element(
          "button",
          { type: "button", class: "chip", title: "Add to the filter", onclick: () => onFilter(name, value) },
          element("span", {}, name),
          " ",
          shown(value),
        ),
      ),
    );

const cell = (its) => `${decimal(its.mean, 3)} ± ${decimal(its.deviation, 3)}`;

const numbers = (explanation) =>
  element(
    "table",
    {},
    element("caption", {}, "Means and deviations where query and document differ most"),
    element("thead", {}, element("tr", {}, ["Dimension", "Nats", "Query", "Document"].map((name) => element("th", { scope: "col" }, name)))),
    element(
      "tbody",
      {},
      dimensionsOf(explanation).map(({ dimension, contribution, query, document }) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, String(dimension)),
          [decimal(contribution, 3), cell(query), cell(document)].map((text) => element("td", {}, text)),
        ),
      ),
    ),
  );

const fields = (result) =>
  element(
    "dl",
    { class: "payload" },
    [["id", result.id], ["−KL in nats", String(result.score).replace("-", "\u2212")], ...Object.entries(result.payload ?? {})].map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, shown(value))),
    ),
  );

/** One result; `act` is what its buttons do: {similar(id), filter(field, value)}. */
const item = (result, place, reach, act) => {
  const payload = result.payload ?? {};
  const { title, text } = headline(payload);
  const [heading, details] = [`result-${place}`, `details-${place}`];
  const more = element("div", { id: details, class: "details", hidden: true });
  const opener = element(
    "button",
    {
      type: "button",
      class: "quiet opener",
      "aria-expanded": "false",
      "aria-controls": details,
      "aria-describedby": heading,
      onclick: () => {
        // Made when it is first asked for: there may be hundreds of results.
        if (!more.hasChildNodes()) more.append(fields(result), result.explanation ? numbers(result.explanation) : "");
        more.hidden = !more.hidden;
        opener.setAttribute("aria-expanded", String(!more.hidden));
      },
    },
    "Details",
  );
  const similar = element(
    "button",
    { type: "button", class: "quiet similar", "aria-describedby": heading, onclick: () => act.similar(result.id) },
    "More like this",
  );
  const named = chips(payload, [title, text], act.filter);
  return element(
    "li",
    {},
    element(
      "article",
      { class: "result", tabindex: place === 1 ? "0" : "-1", "aria-labelledby": heading },
      element("span", { class: "rank", "aria-hidden": "true" }, String(place)),
      element(
        "div",
        { class: "said" },
        element("h3", { id: heading, class: title || !text ? null : "id" }, title ? payload[title] : result.id),
        title ? element("p", { class: "id" }, result.id) : null,
        text ? element("p", { class: "text" }, payload[text]) : null,
        named.length ? element("ul", { class: "chips", "aria-label": "Fields" }, named) : null,
        element("div", { class: "actions" }, similar, opener),
      ),
      element(
        "div",
        { class: "picture" },
        element("p", { class: "score" }, element("span", { class: "unit" }, "−KL "), decimal(result.score, 3)),
        result.explanation ? [gaussians(result.explanation), parts(result.explanation, reach)] : null,
      ),
      more,
    ),
  );
};

/** Arrows, Home and End move, Enter opens what has the focus, M asks for more like it. */
const onKey = (event, list) => {
  const current = event.target.closest(".result");
  const all = [...list.querySelectorAll(".result")];
  const place = all.indexOf(current);
  const to = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: all.length - 1 }[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (to !== undefined) {
    event.preventDefault();
    if (to < 0) document.getElementById("query").focus();
    else if (to < all.length) moveTo(all, to);
  } else if (event.target === current && event.key === "Enter") {
    event.preventDefault();
    current.querySelector(".opener").click();
  } else if (event.target === current && event.key.toLowerCase() === "m") {
    event.preventDefault();
    current.querySelector(".similar").click();
  } else if (event.key === "Escape") {
    document.getElementById("query").focus();
  }
};

const moveTo = (all, place) => {
  // One of them is on the way of the Tab key.
  for (const [at, each] of all.entries()) each.tabIndex = at === place ? 0 : -1;
  all[place].focus();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  all[place].scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
};

/** The results as a list. */
export const resultList = (results, act) => {
  const explained = results.map((each) => each.explanation).filter(Boolean);
  const reach = reachOf(explained);
  const list = element(
    "ol",
    { class: "results", "aria-label": "Results" },
    results.map((result, place) => item(result, place + 1, reach, act)),
  );
  list.addEventListener("keydown", (event) => onKey(event, list));
  return list;
};
