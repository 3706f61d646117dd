"""The page where something is wrong: mistakes, a service that is full, not ready, locked or gone, and documents that
mean harm. Each state is looked at by axe, too."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Route, expect
from pydantic import SecretStr

from index import IndexDirectory, build_index, delete_documents
from service import live_index
from service.app import create_app
from service.settings import ServiceSettings
from tests.browsing import Tab
from tests.conftest import random_gaussians, write_corpus
from tests.serving import GatedSearcher, Served, listening, wait_until

OpenTab = Callable[..., Tab]
QUERY = '{"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1]}'
KEY = "Schlüssel-zum-Suchen"


@pytest.fixture(scope="module")
def port(served: Served) -> Iterator[int]:
    with listening(create_app(ServiceSettings(index=served.directory.path))) as chosen:
        yield chosen


def fails(tab: Tab, title: str, detail: str) -> None:
    """Waits for what a failure says, which is announced."""
    shown = tab.page.locator("#error[role=alert]")
    expect(shown.get_by_role("heading")).to_have_text(title)
    expect(shown).to_contain_text(detail)
    expect(tab.page.locator(".result")).to_have_count(0)


def test_mistakes_are_named_and_do_not_stay(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port)
    for query, title, detail in (
        ('{"mean": [0], "variance": [1]}', "Not a Gaussian of this index", "the index holds k = 5"),
        ('{"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 0, 1, 1]}', "Not a Gaussian", "variance is 0.0"),
        ('{"mean": [0, 0], "spread": []}', "The request is not valid", "spread: there is no such field"),
        ('{"mean": [0', "This is not JSON of a Gaussian", 'Write {"mean": [...], "variance": [...]}'),
    ):
        tab.search(query, "Gaussian")
        expect(tab.page.locator("#error h2")).to_contain_text(title)
        expect(tab.page.locator("#error")).to_contain_text(detail)
    tab.search("nobody")
    fails(tab, "No such document", "nobody")
    tab.is_accessible("a failure")
    tab.page.locator("#filter-toggle").click()
    tab.page.locator("#filter").fill('{"colour": "red"}')
    tab.search("d7")
    fails(tab, "An option is out of range", "no document has a field 'colour'; they have text")
    tab.page.locator("#filter").fill('{"text": ')
    tab.box.press("Enter")
    expect(tab.page.locator("#filter")).to_be_focused()
    expect(tab.page.locator("#filter-error")).to_contain_text("This is not a filter")
    tab.is_accessible("a filter that is none")
    tab.page.locator("#filter").fill("")
    tab.search("d7")
    expect(tab.page.locator(".result")).to_have_count(10)
    expect(tab.page.locator("#error")).to_be_hidden()


def test_ids_of_any_letters_are_asked_for_as_they_are(open_tab: OpenTab, port: int, served: Served) -> None:
    tab = open_tab(port)
    for odd in served.ids[:6]:
        tab.search(odd)
        expect(tab.page.locator(".question h2")).to_have_text(f"More like {odd}")
        expect(tab.page.locator(".question p")).to_have_text(f"text of {odd}")
        expect(tab.page.locator(".result")).to_have_count(10)


def test_a_full_service_says_when_to_come_back(open_tab: OpenTab, served: Served, gated: GatedSearcher) -> None:
    app = create_app(ServiceSettings(index=served.directory.path, queue_rows=1))
    with listening(app) as port, contextlib.ExitStack() as stack:
        tab = open_tab(port)
        gated.gate.clear()
        stack.callback(gated.gate.set)
        searches = gated.rows.copy()
        senders = [threading.Thread(target=similar, args=(port,)) for _ in range(2)]
        senders[0].start()
        wait_until(lambda: len(gated.rows) > len(searches))
        senders[1].start()
        wait_until(lambda: app.state.gaussearch.metrics.queue_rows._value.get() == 1)
        tab.search("d7")
        fails(tab, "The service is at capacity", "Try again in 1 s.")
        assert 429 in tab.answered
        gated.gate.set()
        for sender in senders:
            sender.join()
        tab.page.get_by_role("button", name="Try again").click()
        expect(tab.page.locator(".result")).to_have_count(10)


def similar(port: int) -> None:
    httpx.post(f"http://127.0.0.1:{port}/v1/documents/d7/similar", trust_env=False, timeout=60)


def test_a_service_that_is_not_ready_is_waited_for(
    open_tab: OpenTab, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = threading.Event(), live_index.load

    def slow(*arguments: Any) -> Any:
        assert loaded.wait(60)
        return load(*arguments)

    monkeypatch.setattr("service.live_index.load", slow)
    with listening(create_app(ServiceSettings(index=served.directory.path)), ready=False) as port:
        tab = open_tab(port, "#search?by=document&q=d7")
        said = "The service is not ready. The index is being loaded. The page goes on trying."
        expect(tab.page.locator("#trouble")).to_have_text(said)
        expect(tab.page.locator("#error")).to_contain_text("The index is being loaded.")
        tab.is_accessible("a service that is not ready")
        loaded.set()
        expect(tab.page.locator(".result")).to_have_count(10)
        expect(tab.page.locator("#trouble")).to_be_hidden()


PLACES = """() => Object.fromEntries([...document.querySelectorAll("nav a, button, select, textarea, input, label")]
  .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !each.classList.contains("unseen"))
  .map((each) => [each.id || `${each.tagName} ${each.textContent.trim()}`, each.getBoundingClientRect()])
  .map(([name, { x, y, width, height }]) => [name, [x, y, width, height]]))"""
"""Where everything is that can be used, by its id or what it says."""


def opened_without_its_index(tab: Tab, **changed: Any) -> Callable[[], None]:
    """Loads the page anew, which learns of its index, `changed` like this, once what this returns is called."""
    model = {"name": "all-MiniLM-L6-v2", "encoder": "head", "k": 5, "fingerprint": "0f" * 8}
    known, held = threading.Event(), []

    def described(route: Route) -> None:
        if known.is_set():
            route.fulfill(json={**route.fetch().json(), "model": model, **changed})
        else:
            held.append(route)

    def release() -> None:
        known.set()
        for route in held:
            described(route)

    tab.page.route("**/v1/index", described)
    tab.page.reload()
    expect(tab.box).to_be_visible()
    return release


@pytest.mark.parametrize("width", [360, 1180])
@pytest.mark.parametrize("kind", ["flat", "fastscan"])
@pytest.mark.parametrize("reads_text", [False, True])
def test_nothing_moves_once_it_is_known_what_there_is_to_search_with(
    open_tab: OpenTab, port: int, reads_text: bool, kind: str, width: int
) -> None:
    tab = open_tab(port, viewport={"width": width, "height": 900})
    release = opened_without_its_index(tab, reads_text=reads_text, kind=kind)
    tabs = tab.page.get_by_role("radio")
    expect(tabs).to_have_count(0)
    tab.is_accessible("an index that is not known yet")
    before = tab.page.evaluate(PLACES)
    release()
    expect(tabs).to_have_count(3 if reads_text else 2)
    expect(tab.page.get_by_role("radio", name="Text" if reads_text else "Document")).to_be_checked()
    after = tab.page.evaluate(PLACES)
    assert set(before) == {"to-search", "to-index", "theme", "query", "BUTTON Search"} <= set(after)
    assert before == {name: after[name] for name in before}


def test_what_is_typed_before_it_is_known_that_words_are_read_is_words(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port)
    release = opened_without_its_index(tab, reads_text=True)
    tab.box.fill("a bit")
    release()
    expect(tab.page.get_by_role("radio", name="Text")).to_be_checked()
    assert tab.box.input_value() == "a bit"


def test_a_service_that_is_gone_is_waited_for(open_tab: OpenTab, served: Served) -> None:
    settings = ServiceSettings(index=served.directory.path)
    with listening(create_app(settings)) as port:
        tab = open_tab(port)
        tab.search("d7")
        expect(tab.page.locator(".result")).to_have_count(10)
    tab.search("d8")
    fails(tab, "The service does not answer", "It may have stopped, or the network is down.")
    tab.is_accessible("a service that is gone")
    tab.page.get_by_role("link", name="Index").click()
    expect(tab.page.locator("#trouble")).to_contain_text("The page goes on trying.")
    with listening(create_app(settings), port=port):
        expect(tab.page.locator("#trouble")).to_be_hidden()
        tab.sees("60")


def test_a_key_is_asked_for_and_kept_in_the_page_alone(open_tab: OpenTab, served: Served) -> None:
    with listening(create_app(ServiceSettings(index=served.directory.path, api_key=SecretStr(KEY)))) as port:
        tab = open_tab(port, "#search?by=document&q=d7")
        dialog = tab.page.get_by_role("dialog", name="A search key is needed")
        expect(dialog).to_be_visible()
        expect(dialog.get_by_label("Search key")).to_be_focused()
        expect(dialog).to_contain_text("Do not enter an admin key")
        tab.is_accessible("a service that needs a key")
        dialog.get_by_label("Search key").fill("another-key")
        dialog.get_by_label("Search key").press("Enter")
        expect(dialog).to_contain_text("The service does not take that key.")
        dialog.get_by_label("Search key").fill(KEY)
        dialog.get_by_role("button", name="Use it").click()
        expect(tab.page.locator(".result")).to_have_count(10)
        stored = tab.page.evaluate(
            "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, history.state])"
        )
        assert KEY not in stored
        assert KEY not in tab.page.content()
        assert tab.page.locator("#key").input_value() == ""
        tab.page.get_by_role("button", name="Forget key").click()
        expect(dialog).to_be_visible()
        expect(tab.page.locator(".result")).to_have_count(0)


def test_no_key_is_needed_to_look_at_the_page_itself(open_tab: OpenTab, served: Served) -> None:
    with listening(create_app(ServiceSettings(index=served.directory.path, api_key=SecretStr(KEY)))) as port:
        tab = open_tab(port)
        tab.page.get_by_role("button", name="Not now").click()
        tab.sees("A valid API key is needed.")
        tab.page.get_by_role("button", name="Enter a key").click()
        expect(tab.page.get_by_role("dialog")).to_be_visible()


EVIL = [
    "<img src=x onerror=\"console.error('run')\">",
    "<script>console.error('run')</script>",
    "javascript:console.error('run')",
    "\"><svg onload=console.error('run')>",
    "{files}/../../v1/index",
    "a\u202eb\u0000c",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> IndexDirectory:
    """Documents whose ids, fields and values are markup."""
    folder = tmp_path_factory.mktemp("hostile")
    ids = [f"{evil}{row}" for row, evil in enumerate(EVIL)]
    fields = {"text": EVIL, "title": EVIL[::-1], EVIL[0]: EVIL, EVIL[1]: [[evil] for evil in EVIL], "__proto__": EVIL}
    corpus = write_corpus(folder / "corpus.parquet", random_gaussians(len(EVIL), 5, seed=3), ids, **fields)
    build_index([corpus], IndexDirectory(folder / EVIL[0].replace("/", "")))
    return IndexDirectory(folder / EVIL[0].replace("/", ""))


def test_what_documents_say_is_text(open_tab: OpenTab, hostile: IndexDirectory) -> None:
    """Nothing of it runs, loads or changes the page: a console error or a request elsewhere would fail the test."""
    with listening(create_app(ServiceSettings(index=hostile.path))) as port:
        tab = open_tab(port)
        tab.search(QUERY, "Gaussian")
        expect(tab.page.locator(".result")).to_have_count(len(EVIL))
        for opener in tab.page.get_by_role("button", name="Details").all():
            opener.click()
        tab.page.locator(".chips .chip").first.click()
        expect(tab.page.locator("#conditions li")).to_have_count(1)
        tab.settled()
        tab.page.get_by_role("button", name="More like this").first.click()
        tab.settled()
        tab.page.get_by_role("link", name="Index").click()
        expect(tab.page.get_by_role("heading", level=1)).to_have_text(hostile.name)
        assert tab.page.locator("main img, main script, main iframe, main a, main [onerror]").count() == 0
        assert set(tab.answered) <= {200, 304}


def test_an_index_without_documents(open_tab: OpenTab, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(1, 5))
    directory = IndexDirectory(tmp_path / "empty")
    build_index([corpus], directory)
    delete_documents(["d0"], directory)
    with listening(create_app(ServiceSettings(index=directory.path))) as port:
        tab = open_tab(port)
        tab.search(QUERY, "Gaussian")
        tab.sees("The index holds no documents yet.")
        tab.is_accessible("an empty index")
