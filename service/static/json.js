// JSON whose integers stay what they are: past 2^53, where numbers are rounded, they become BigInts.

const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const INTEGER = /^-?[1-9]\d*$/;

const isRounded = (value) => (Number.isInteger(value) ? !Number.isSafeInteger(value) : Math.abs(value) === Infinity);

/** JSON.parse; SyntaxError where it is none. */
export const parse = (text) => {
  // In front of the digits, and nobody knows it who writes documents.
  const mark = `${Math.random()}:`;
  let marked = false;
  const mended = text.replace(TOKEN, (token) => {
    if (!INTEGER.test(token) || !isRounded(Number(token))) return token;
    marked = true;
    return `"${mark}${token}"`;
  });
  if (!marked) return JSON.parse(text);
  const read = (_, value) =>
    typeof value === "string" && value.startsWith(mark) ? BigInt(value.slice(mark.length)) : value;
  return JSON.parse(mended, read);
};

/** JSON.stringify, of what `parse` gives, too. */
export const write = (value) => {
  if (typeof value === "bigint") return String(value);
  // JSON.stringify makes a null of it, which asks for something else.
  if (Math.abs(value) === Infinity) return value < 0 ? "-1e999" : "1e999";
  if (Array.isArray(value)) return `[${value.map(write).join()}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const fields = Object.entries(value).filter(([, its]) => its !== undefined);
  return `{${fields.map(([name, its]) => `${JSON.stringify(name)}:${write(its)}`).join()}}`;
};

/** A number as somebody types it; NaN where it is none. */
export const numberOf = (text) => {
  const value = Number(text);
  if (!isRounded(value)) return value;
  try {
    return BigInt(text);
  } catch {
    // With a point or an exponent, it is no integer.
    return value;
  }
};
