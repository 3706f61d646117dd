// Starts the page: which view is shown, what is known of the index, the key, and what the keyboard does everywhere.

import * as api from "./api.js";
import { showCharts, startCharts } from "./charts.js";
import { byId, element, sentence, whole } from "./dom.js";
import { showIndex } from "./overview.js";
import { learnIndex, leaveSearch, showSearch, startSearch } from "./search.js";

const PERIOD = 5000;
const SOON = 1000;
const VIEWS = ["search", "index"];

let timer = 0;
let turn = 0;
let afterKey = [];
let declined = false;

/** What the address asks for; `view` is null where it names none. */
const route = () => {
  const [view, query = ""] = location.hash.slice(1).split("?", 2);
  const named = view === "" ? "search" : view;
  return { view: VIEWS.includes(named) ? named : null, fields: new URLSearchParams(query) };
};

const showView = () => {
  const { view, fields } = route();
  // A place in the page, such as its content: what is shown stays.
  if (view === null) return;
  leaveSearch();
  for (const each of VIEWS) {
    byId(`${each}-view`).hidden = each !== view;
    if (each === view) byId(`to-${each}`).setAttribute("aria-current", "page");
    else byId(`to-${each}`).removeAttribute("aria-current");
  }
  document.title = view === "index" ? "Index · Gaussearch" : "Gaussearch";
  showCharts(view === "index");
  if (view === "index") look();
  else showSearch(fields, history.state);
};

const askForKey = (then) => {
  afterKey.push(then);
  const dialog = byId("key-dialog");
  byId("key-error").textContent = api.hasKey() ? "The service does not take that key." : "";
  if (!dialog.open) dialog.showModal();
  byId("key").focus();
};

const trouble = (failure) => {
  const place = byId("trouble");
  if (failure === null) {
    place.replaceChildren();
    return;
  }
  // Said once, not at every look.
  if (place.dataset.code === failure.code && place.hasChildNodes()) return;
  place.dataset.code = failure.code;
  const again = failure.code === "unauthorized" ? "Enter a key" : null;
  place.replaceChildren(
    element(
      "p",
      { class: `notice ${failure.code === "unauthorized" ? "fair" : "bad"}` },
      element("b", {}, sentence(failure.title)),
      " ",
      failure.code === "unauthorized" ? "" : `${sentence(failure.detail)} The page goes on trying. `,
      again ? element("button", { type: "button", class: "quiet", onclick: () => askForKey(look) }, again) : null,
    ),
  );
};

/** Looks at the index, and again after a while: sooner where it is not there. */
const look = async () => {
  clearTimeout(timer);
  turn += 1;
  const mine = turn;
  let wait = PERIOD;
  try {
    const index = await api.fetchIndex();
    if (mine !== turn) return;
    trouble(null);
    byId("served").textContent = `${index.name} · ${whole(index.documents)} documents`;
    byId("forget-key").hidden = !api.hasKey();
    learnIndex(index);
    showIndex(index);
  } catch (failure) {
    if (!(failure instanceof api.Failure)) throw failure;
    if (mine !== turn) return;
    trouble(failure);
    wait = SOON;
    if (failure.code === "unauthorized") {
      // Asked once by itself, and then where somebody wants to.
      if (!declined && !byId("key-dialog").open) askForKey(look);
      return;
    }
  }
  timer = setTimeout(lookIfSeen, wait);
};

const lookIfSeen = () => {
  if (!document.hidden) look();
};

const startKey = () => {
  const dialog = byId("key-dialog");
  byId("key-form").addEventListener("submit", () => {
    api.setKey(byId("key").value);
    byId("key").value = "";
    const then = new Set([look, ...afterKey]);
    afterKey = [];
    for (const each of then) each();
  });
  dialog.addEventListener("close", () => {
    byId("key").value = "";
  });
  const decline = () => {
    declined = true;
    afterKey = [];
    dialog.close();
  };
  byId("key-cancel").addEventListener("click", decline);
  dialog.addEventListener("cancel", () => {
    declined = true;
    afterKey = [];
  });
  byId("forget-key").addEventListener("click", () => {
    api.setKey("");
    // What has been found with it goes, too.
    location.reload();
  });
};

const startKeyboard = () => {
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, textarea, select, dialog") !== null;
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (byId("search-view").hidden) {
      location.hash = "#search";
      showView();
    }
    byId("query").focus();
    byId("query").select();
  });
  // Followed, the link would be an address of its own, which names no view.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("main").focus();
  });
};

const startTheme = () => {
  const button = byId("theme");
  const show = () => {
    const { choice } = window.theme;
    button.lastElementChild.textContent = choice[0].toUpperCase() + choice.slice(1);
  };
  button.addEventListener("click", () => window.theme.next());
  document.addEventListener("theme", show);
  show();
};

startTheme();
startKey();
startKeyboard();
startCharts();
startSearch(askForKey);
addEventListener("popstate", showView);
document.addEventListener("visibilitychange", lookIfSeen);
if (route().view === null) history.replaceState(null, "", "#search");
showView();
look();
