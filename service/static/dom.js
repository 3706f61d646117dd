// Elements and numbers. Whatever a document or an answer says becomes text, never markup.

import { write } from "./json.js";

const SVG = "http://www.w3.org/2000/svg";

const fill = (made, properties, children) => {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
};

/** An element of HTML: attributes, listeners under names such as onclick, and children, of which strings are text. */
export const element = (tag, properties = {}, ...children) => fill(document.createElement(tag), properties, children);

/** The same of SVG. */
export const drawn = (tag, properties = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), properties, children);

export const byId = (id) => document.getElementById(id);

const negative = (text) => text.replace("-", "\u2212");

/** A whole number with separators: 117,659. */
export const whole = (value) => negative(Math.round(value).toLocaleString("en"));

/** A number with as many decimals as matter for its size. */
export const decimal = (value, digits = 2) => {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return negative(value.toExponential(2));
  return negative(value.toFixed(size >= 1000 ? 0 : size >= 100 ? Math.min(digits, 1) : digits));
};

export const milliseconds = (value) => `${decimal(value, value < 10 ? 1 : 0)} ms`;

/** A number of bytes in the unit that suits it. */
export const bytes = (value) => {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit ? decimal(value, 1) : whole(value)} ${units[unit]}`;
};

/** A text with a stop at its end. */
export const stopped = (text) => `${text}${/[.!?]$/.test(text) ? "" : "."}`;

/** The same with a capital at its beginning: a sentence. */
export const sentence = (text) => stopped(`${text.slice(0, 1).toUpperCase()}${text.slice(1)}`);

/** What a payload's value says, in a line. */
export const shown = (value) => (typeof value === "string" ? value : write(value));
