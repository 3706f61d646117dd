"""A real browser for tests of the page: Chromium without a window, watched while it works."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect, sync_playwright

from tests.serving import PATIENCE

__all__ = ["Tab", "open_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome")

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""

expect.set_options(timeout=30_000)


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium, if there is one: Playwright drives that of the system and brings none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start as root, and what is opened here is ours.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


# Without slots: Playwright keeps what it makes of a listener in the listener's object.
@dataclass
class Tab:
    """The page in a window of its own, and all that must not happen in it."""

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    """The statuses of all answers under /v1."""

    @classmethod
    def open(cls, browser: Browser, port: int, path: str = "", **options: Any) -> "Tab":
        """Opens the page of the service on this port; options as those of Playwright's contexts."""
        page = browser.new_page(**{"color_scheme": "light", **options})
        tab = cls(page, f"http://127.0.0.1:{port}/")
        page.set_default_timeout(1000 * PATIENCE)
        page.add_init_script(REPORT_VIOLATIONS)
        page.on("console", tab._on_console)
        page.on("pageerror", lambda error: tab.faults.append(f"error: {error}"))
        page.on("request", tab._on_request)
        page.on("response", lambda answer: tab.answered.append(answer.status) if "/v1/" in answer.url else None)
        page.goto(tab.url + path)
        return tab

    def _on_console(self, message: ConsoleMessage) -> None:
        # That a request was answered with an error, or not at all, the browser says by itself.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.faults.append(message.text)

    def _on_request(self, request: Request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.faults.append(f"asks for {request.url}")

    def close(self) -> None:
        """Fails where the page has done what it must not: an error, a violation of its policy, a request elsewhere."""
        # It asks for more all the time, and some of that may be on its way through a test's hands.
        self.page.unroute_all(behavior="ignoreErrors")
        self.page.context.close()
        assert self.faults == []

    def search(self, query: str, mode: str = "Document") -> None:
        """Types a query and waits until it is answered."""
        self.page.get_by_role("radio", name=mode, exact=True).check(force=True)
        self.box.fill(query)
        self.box.press("Enter")
        self.settled()

    def settled(self) -> None:
        """Waits until nothing is being searched for."""
        expect(self.page.locator("#found:not([aria-busy])")).to_be_attached()

    @property
    def box(self) -> Locator:
        """The search box."""
        return self.page.locator("#query")

    def results(self) -> list[str]:
        """The ids of the documents that are shown."""
        found: list[str] = self.page.locator(".result h3").all_text_contents()
        return found

    def shows(self, ids: Sequence[str]) -> None:
        """Waits for these documents, in this order, and no other: what is shown may still be of the search before."""
        expect(self.page.locator(".result h3")).to_have_text(list(ids))

    def sees(self, text: str) -> None:
        """Waits for a text that can be seen."""
        expect(self.page.get_by_text(text).filter(visible=True).first).to_be_visible()

    def is_accessible(self, state: str) -> None:
        """Fails where axe finds anything against the guidelines, in either colour scheme."""
        for scheme in SCHEMES:
            # Not in the middle of a change of colours.
            self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            expect(self.page.locator("html")).to_have_css("color-scheme", scheme)
            found = Axe().run(self.page)
            assert found.violations_count == 0, f"{state}, {scheme}:\n{found.generate_report()}"
        self.page.emulate_media(color_scheme="light")
