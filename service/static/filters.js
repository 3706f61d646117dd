// The filter: JSON as the service takes it, a row of inputs that adds to it, and a chip for each of its conditions.

import { byId, element, shown } from "./dom.js";
import { numberOf, parse, write } from "./json.js";

const SIGNS = { gte: "≥", gt: ">", lte: "≤", lt: "<" };
const LONGEST = 80;

const types = new Map();
let onChange = () => {};

export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** The filter as an object; null where there is none, and SyntaxError where it is not one. */
export const currentFilter = () => {
  const text = byId("filter").value.trim();
  if (!text) return null;
  const parsed = parse(text);
  if (!isObject(parsed)) throw new SyntaxError("a filter is an object: {\"field\": value}");
  return Object.keys(parsed).length ? parsed : null;
};

/** Shows a filter; null for none. */
export const showFilter = (filter) => {
  byId("filter").value = filter === null ? "" : write(filter);
  refresh();
};

/** Remembers the fields of these payloads and what type their values have. */
export const learnFields = (results) => {
  for (const { payload } of results) {
    for (const [name, value] of Object.entries(payload ?? {})) {
      const sample = Array.isArray(value) ? value[0] : value;
      if (sample !== null && sample !== undefined) types.set(name, typeof sample);
    }
  }
  const names = ["id", ...types.keys()];
  byId("fields").replaceChildren(...names.map((name) => element("option", { value: name })));
};

/** Text as a value of the type that the field is known to have, else as what it looks like. */
const valueOf = (field, text) => {
  const type = field === "id" ? "string" : types.get(field);
  if (type === "string") return text;
  if (text === "true" || text === "false") return text === "true";
  const number = text === "" ? NaN : numberOf(text);
  return typeof number === "bigint" || Number.isFinite(number) ? number : text;
};

/** A filter that also asks for this. */
const extended = (filter, field, condition) => {
  const known = filter[field];
  const isRange = isObject(condition) && !("in" in condition);
  if (known === undefined || (isRange && isObject(known) && !("in" in known))) {
    return { ...filter, [field]: isRange ? { ...known, ...condition } : condition };
  }
  return { ...filter, and: [...(filter.and ?? []), { [field]: condition }] };
};

const negated = (filter, condition) =>
  filter.not === undefined
    ? { ...filter, not: condition }
    : { ...filter, and: [...(filter.and ?? []), { not: condition }] };

const said = (name, condition) => {
  if (["and", "or", "not"].includes(name)) return `${name} ${write(condition)}`;
  if (condition === null) return `${name} is missing`;
  if (!isObject(condition)) return `${name} = ${shown(condition)}`;
  if (Array.isArray(condition.in)) return `${name} in ${condition.in.map(shown).join(", ")}`;
  return `${name} ${Object.entries(condition)
    .map(([sign, value]) => `${SIGNS[sign] ?? sign} ${shown(value)}`)
    .join(" and ")}`;
};

const shortened = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text);

const refresh = () => {
  const [field, error] = [byId("filter"), byId("filter-error")];
  let filter = null;
  try {
    filter = currentFilter();
    error.textContent = "";
    field.removeAttribute("aria-invalid");
  } catch (problem) {
    error.textContent = `This is not a filter: ${problem.message}`;
    field.setAttribute("aria-invalid", "true");
  }
  const remove = (name) => {
    const { [name]: _, ...rest } = filter;
    change(Object.keys(rest).length ? rest : null);
    byId("filter-toggle").focus();
  };
  byId("conditions").replaceChildren(
    ...Object.entries(filter ?? {}).map(([name, condition]) => {
      const text = shortened(said(name, condition));
      return element(
        "li",
        {},
        element(
          "button",
          { type: "button", class: "chip", "aria-label": `Remove ${text}`, onclick: () => remove(name) },
          text,
          element("span", { "aria-hidden": "true" }, " ×"),
        ),
      );
    }),
  );
};

const change = (filter) => {
  showFilter(filter);
  onChange();
};

/** Adds a condition, by one of the operators of the builder. */
export const addCondition = (field, operator, values) => {
  let filter;
  try {
    filter = currentFilter() ?? {};
  } catch {
    // What is wrong stands beside it already.
    openFilter(true);
    return;
  }
  const [first] = values;
  if (operator === "is") change(extended(filter, field, first));
  else if (operator === "isnot") change(negated(filter, { [field]: first }));
  else if (operator === "in") change(extended(filter, field, { in: values }));
  else if (operator === "missing") change(extended(filter, field, null));
  else change(extended(filter, field, { [operator]: first }));
};

export const openFilter = (open) => {
  byId("filter-panel").hidden = !open;
  byId("filter-toggle").setAttribute("aria-expanded", String(open));
};

const addTyped = () => {
  const [field, operator] = [byId("filter-field").value.trim(), byId("filter-operator").value];
  if (!field) {
    byId("filter-field").focus();
    return;
  }
  const text = byId("filter-value").value.trim();
  const texts = operator === "in" ? text.split(",").map((part) => part.trim()) : [text];
  byId("filter-value").value = "";
  addCondition(field, operator, texts.map((part) => valueOf(field, part)));
};

/** `changed` is called where another filter has been put together. */
export const startFilters = (changed) => {
  onChange = changed;
  byId("filter-toggle").addEventListener("click", () => openFilter(byId("filter-panel").hidden));
  byId("filter").addEventListener("input", refresh);
  byId("filter-add").addEventListener("click", addTyped);
  byId("filter-operator").addEventListener("change", () => {
    byId("filter-value").disabled = byId("filter-operator").value === "missing";
  });
  for (const id of ["filter-field", "filter-value"]) {
    byId(id).addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      addTyped();
    });
  }
};
