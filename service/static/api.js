// The service's HTTP API. The key, where one is needed, is held here and nowhere else: it is gone with the page.

import { parse, write } from "./json.js";

let key = "";

/** What went wrong: `code` is the service's, or `unreachable`; `retryAfter` is in seconds, null where it does not say. */
export class Failure extends Error {
  constructor({ code, title, detail, status = 0, requestId = "", retryAfter = null }) {
    super(detail);
    Object.assign(this, { code, title, detail, status, requestId, retryAfter });
  }
}

export const setKey = (given) => {
  key = given.trim();
};

export const hasKey = () => key !== "";

// Headers are bytes, and a key may have any letters: as UTF-8, which fetch takes a character a byte.
const asBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

const failureOf = async (response) => {
  let problem = {};
  try {
    problem = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // Something between here and the service has answered in its place.
  }
  const seconds = Number.parseFloat(response.headers.get("retry-after") ?? "");
  return new Failure({
    code: problem.code ?? "unexpected",
    title: problem.title ?? "Something else than the service has answered",
    detail: problem.detail ?? `The answer has status ${response.status} and says no more.`,
    status: response.status,
    requestId: problem.request_id ?? response.headers.get("x-request-id") ?? "",
    retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
};

const unreachable = () =>
  new Failure({
    code: "unreachable",
    title: "The service does not answer",
    detail: "It may have stopped, or the network is down.",
  });

/** What an answer holds, by `read`; throws Failure, or AbortError where `signal` says so. */
const send = async (path, read, { body, signal } = {}) => {
  const headers = key ? { authorization: `Bearer ${asBytes(key)}` } : {};
  const options = { headers, signal, cache: "no-store", credentials: "omit", redirect: "error" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = write(body);
    headers["content-type"] = "application/json";
  }
  try {
    const response = await fetch(path, options);
    if (!response.ok) throw await failureOf(response);
    return await read(response);
  } catch (error) {
    // An answer may break off in the middle, too.
    throw error.name === "AbortError" || error instanceof Failure ? error : unreachable();
  }
};

// Relative, so that a proxy may serve all of it below a path of its own.
const json = (path, options) => send(path, async (response) => parse(await response.text()), options);

// To a browser, "." and ".." between slashes are steps to another path, however they are encoded: so one slash is, too.
const similarPath = (id) =>
  `v1/documents/${encodeURIComponent(id)}${[".", ".."].includes(id) ? "%2F" : "/"}similar`;

export const fetchIndex = () => json("v1/index");
export const searchSimilar = (id, options, signal) => json(similarPath(id), { body: options, signal });
export const search = (query, signal) => json("v1/search", { body: query, signal });
export const fetchMetrics = () => send("metrics", (response) => response.text());
