// Light or dark, before anything is drawn. As the system has it, unless the reader chooses; that choice is all that this
// page stores in a browser.
"use strict";

(() => {
  const NAME = "gaussearch-theme";
  const CHOICES = ["auto", "light", "dark"];
  const system = matchMedia("(prefers-color-scheme: dark)");

  const stored = () => {
    try {
      return localStorage.getItem(NAME);
    } catch {
      // Storage may be switched off.
      return null;
    }
  };

  let choice = CHOICES.includes(stored()) ? stored() : "auto";

  const apply = () => {
    const dark = choice === "dark" || (choice === "auto" && system.matches);
    document.documentElement.classList.toggle("dark", dark);
    document.dispatchEvent(new Event("theme"));
  };

  window.theme = {
    get choice() {
      return choice;
    },
    next() {
      choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
      try {
        localStorage.setItem(NAME, choice);
      } catch {
        // Then it holds until the page is left.
      }
      apply();
    },
  };

  system.addEventListener("change", apply);
  apply();
})();
