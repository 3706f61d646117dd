"""What the page asks for, and when it stops: by addresses, by links, by ids and filters of any value, and where another
search or view has taken the place of the one before."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Route, expect
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from index import IndexDirectory, build_index
from service.app import create_app
from service.settings import ServiceSettings
from tests.browsing import Tab
from tests.conftest import random_gaussians, write_corpus
from tests.serving import Served, listening, wait_until

OpenTab = Callable[..., Tab]


@pytest.fixture(scope="module")
def port(served: Served) -> Iterator[int]:
    with listening(create_app(ServiceSettings(index=served.directory.path))) as chosen:
        yield chosen


def test_skipping_to_the_content_leaves_it_as_it_is(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port, "#search?by=document&q=d7")
    expect(tab.page.locator(".result")).to_have_count(10)
    skip(tab)
    assert len(tab.results()) == 10
    assert tab.box.input_value() == "d7"
    tab.page.get_by_role("link", name="Index", exact=True).click()
    expect(tab.page.locator("#index-view")).to_be_visible()
    skip(tab)
    expect(tab.page.locator("#index-view")).to_be_visible()
    expect(tab.page.locator("#search-view")).to_be_hidden()


def skip(tab: Tab) -> None:
    address = tab.page.url
    tab.page.locator(".skip").focus()
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("main")).to_be_focused()
    # What follows from another address follows before this.
    tab.page.evaluate("new Promise((then) => setTimeout(then, 100))")
    assert tab.page.url == address


def test_an_address_that_names_no_view_changes_nothing(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port, "#elsewhere")
    tab.sees("Show me some documents")
    assert tab.page.url.endswith("/#search")
    tab.search("d7")
    expect(tab.page.locator(".result")).to_have_count(10)
    tab.page.evaluate("new Promise((then) => { addEventListener('popstate', then); location.hash = '#main'; })")
    assert len(tab.results()) == 10


class Slow:
    """A service where the search with `halting` fails in an answer that never ends, and that with `d8` waits for
    `gate`; `seen` holds the paths of all searches."""

    def __init__(self, app: ASGIApp, gate: threading.Event, seen: list[str]) -> None:
        self.app, self.gate, self.seen = app, gate, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.endswith("/similar"):
            self.seen.append(path)
        if path.endswith("/halting/similar"):
            headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"1000")]
            await send({"type": "http.response.start", "status": 422, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"code": "stale"', "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        if path.endswith("/d8/similar"):
            await asyncio.to_thread(self.gate.wait, 60)
        await self.app(scope, receive, send)


def test_a_failure_of_the_search_before_is_not_shown(open_tab: OpenTab, served: Served) -> None:
    app = create_app(ServiceSettings(index=served.directory.path))
    gate = threading.Event()
    seen: list[str] = []
    app.add_middleware(Slow, gate=gate, seen=seen)
    with listening(app) as port, contextlib.ExitStack() as stack:
        stack.callback(gate.set)
        tab = open_tab(port)
        with tab.page.expect_response("**/halting/similar"):
            ask(tab, "halting")
        with tab.page.expect_request("**/d8/similar"):
            ask(tab, "d8")
        wait_until(lambda: len(seen) == 2)
        # By then the answer that was given up has told its reader.
        tab.page.evaluate("new Promise((then) => setTimeout(then, 200))")
        expect(tab.page.locator("#error")).to_be_empty()
        expect(tab.page.locator("#found[aria-busy]")).to_be_attached()
        gate.set()
        expect(tab.page.get_by_role("heading", name="More like d8")).to_be_visible()


def ask(tab: Tab, query: str) -> None:
    """Searches with a document, and does not wait for the answer."""
    tab.box.fill(query)
    tab.box.press("Enter")


NOT_READY = {"title": "The service is not ready", "status": 503, "code": "not_ready", "detail": "loading"}


def test_what_waits_to_search_again_ends_with_the_view(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port)
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        headers = {"content-type": "application/problem+json", "retry-after": "1"}
        route.fulfill(status=503, headers=headers, body=json.dumps(NOT_READY))

    tab.page.route("**/similar", refuse)
    ask(tab, "d7")
    tab.sees("The service is not ready")
    tab.page.get_by_role("link", name="Index", exact=True).click()
    expect(tab.page.locator("#index-view")).to_be_visible()
    searches = len(asked)
    tab.page.wait_for_timeout(2000)
    assert len(asked) == searches
    expect(tab.page).to_have_title("Index \N{MIDDLE DOT} Gaussearch")
    tab.page.get_by_role("link", name="Search", exact=True).click()
    tab.sees("Show me some documents")
    tab.page.go_back()
    tab.page.go_back()
    tab.sees("The service is not ready")
    searches = len(asked)
    wait_until(lambda: tab.page.evaluate("1") == 1 and len(asked) > searches)
    tab.page.get_by_role("link", name="Search", exact=True).click()
    tab.sees("Show me some documents")
    searches = len(asked)
    tab.page.wait_for_timeout(2000)
    assert len(asked) == searches
    expect(tab.page.locator("#error")).to_be_empty()


def test_a_search_that_runs_ends_with_the_view(open_tab: OpenTab, served: Served) -> None:
    app = create_app(ServiceSettings(index=served.directory.path))
    gate = threading.Event()
    app.add_middleware(Slow, gate=gate, seen=[])
    with listening(app) as port, contextlib.ExitStack() as stack:
        stack.callback(gate.set)
        tab = open_tab(port)
        with tab.page.expect_request("**/d8/similar"):
            ask(tab, "d8")
        with tab.page.expect_event("requestfailed", lambda request: request.url.endswith("/d8/similar")):
            tab.page.get_by_role("link", name="Index", exact=True).click()
        tab.settled()
        expect(tab.page).to_have_title("Index \N{MIDDLE DOT} Gaussearch")


def test_a_key_goes_on_with_no_search_that_was_left(open_tab: OpenTab, served: Served) -> None:
    app = create_app(ServiceSettings(index=served.directory.path, api_key=SecretStr("a-key")))
    with listening(app) as port:
        tab = open_tab(port, "#search?by=document&q=d7")
        dialog = tab.page.get_by_role("dialog", name="A search key is needed")
        expect(tab.page.locator("#error h2")).to_be_visible()
        tab.page.evaluate("new Promise((then) => { addEventListener('popstate', then); location.hash = '#index'; })")
        asked: list[str] = []
        tab.page.on("request", lambda request: asked.append(request.url) if "similar" in request.url else None)
        dialog.get_by_label("Search key").fill("a-key")
        dialog.get_by_label("Search key").press("Enter")
        expect(tab.page.locator("#tiles")).to_contain_text("60")
        expect(tab.page).to_have_title("Index \N{MIDDLE DOT} Gaussearch")
        assert asked == []


BIG = 2**53 + 1


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A service of documents whose ids are steps of a path, and whose numbers JavaScript rounds."""
    folder = tmp_path_factory.mktemp("odd")
    ids = [".", "..", *(f"d{row}" for row in range(2, 12))]
    numbers = [BIG + row for row in range(len(ids))]
    corpus = write_corpus(folder / "corpus.parquet", random_gaussians(len(ids), 5, seed=4), ids, serial=numbers)
    directory = IndexDirectory(folder / "odd")
    build_index([corpus], directory)
    with listening(create_app(ServiceSettings(index=directory.path))) as port:
        yield port


@pytest.mark.parametrize("name", [".", ".."])
def test_ids_that_are_steps_of_a_path_are_asked_for(open_tab: OpenTab, odd: int, name: str) -> None:
    tab = open_tab(odd)
    tab.search(name)
    expect(tab.page.get_by_role("heading", name=f"More like {name}", exact=True)).to_be_visible()
    expect(tab.page.locator(".result")).to_have_count(10)
    assert name not in tab.results()
    other = "d5"
    tab.page.goto(f"{tab.url}#search?by=document&q={other}&k=20")
    expect(tab.page.locator(".result")).to_have_count(11)
    found = tab.page.locator(".result").filter(has=tab.page.get_by_role("heading", name=name, exact=True))
    found.get_by_role("button", name="More like this").click()
    expect(tab.page.get_by_role("heading", name=f"More like {name}", exact=True)).to_be_visible()
    expect(tab.page.locator(".result")).to_have_count(11)


@pytest.mark.parametrize(
    "fields", ["k=abc", "k=", "k=0", "k=-3", "k=1.5", "k=0x10", "by=foo", "by=toString", "filter=[1]", "filter=7"]
)
def test_what_an_address_does_not_say_is_as_usual(open_tab: OpenTab, port: int, fields: str) -> None:
    by = "" if fields.startswith("by") else "by=document&"
    tab = open_tab(port, f"#search?{by}q=d7&{fields}")
    expect(tab.page.get_by_role("heading", name="More like d7")).to_be_visible()
    expect(tab.page.locator(".result")).to_have_count(10)
    expect(tab.page.get_by_role("radio", name="Document")).to_be_checked()
    expect(tab.page.locator("#top-k")).to_have_value("10")
    expect(tab.page.locator("#top-k option")).to_have_text(["5", "10", "20", "50", "100"])
    expect(tab.page.locator("#filter")).to_have_value("")


def test_an_address_may_ask_for_any_number_of_results(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port, "#search?by=document&q=d7&k=7")
    expect(tab.page.locator(".result")).to_have_count(7)
    expect(tab.page.locator("#top-k")).to_have_value("7")


def passes_alone(tab: Tab, name: str, condition: str) -> None:
    """Waits for the one document that passes this filter."""
    expect(tab.page.locator("#filter")).to_have_value(condition)
    expect(tab.page.locator(".facts")).to_contain_text("Pass the filter1")
    tab.shows([name])


def test_integers_that_javascript_rounds_are_filtered_by_as_they_are(open_tab: OpenTab, odd: int) -> None:
    tab = open_tab(odd, "#search?by=document&q=d5")
    expect(tab.page.locator(".result")).to_have_count(10)
    second = tab.page.locator(".result").filter(has=tab.page.get_by_role("heading", name="d2", exact=True))
    second.get_by_role("button", name="Details").click()
    expect(second.locator(".payload dd").last).to_have_text(str(BIG + 2))
    second.get_by_role("button", name=f"serial {BIG + 2}").click()
    passes_alone(tab, "d2", f'{{"serial":{BIG + 2}}}')
    expect(tab.page.locator("#conditions")).to_contain_text(f"serial = {BIG + 2}")
    tab.page.reload()
    passes_alone(tab, "d2", f'{{"serial":{BIG + 2}}}')
    tab.page.evaluate("history.replaceState(null, '', location.href)")
    tab.page.reload()
    passes_alone(tab, "d2", f'{{"serial":{BIG + 2}}}')

    tab.page.locator("#conditions button").click()
    expect(tab.page.locator(".result")).to_have_count(10)
    tab.page.locator("#filter-toggle").click()
    tab.page.locator("#filter-field").fill("serial")
    tab.page.locator("#filter-operator").select_option("in")
    tab.page.locator("#filter-value").fill(f"{BIG + 4}, 17")
    tab.page.locator("#filter-value").press("Enter")
    passes_alone(tab, "d4", f'{{"serial":{{"in":[{BIG + 4},17]}}}}')

    typed = f'{{"serial": {{"gte": {BIG + 6}, "lt": {BIG + 7}}}}}'
    tab.page.locator("#filter").fill(typed)
    tab.box.press("Enter")
    passes_alone(tab, "d6", typed.replace(" ", ""))

    body = json.dumps({"mean": [0] * 5, "variance": [1] * 5, "filter": {"serial": BIG + 8}})
    tab.page.locator("#filter").fill("")
    tab.search(body, "Gaussian")
    tab.shows(["d8"])


JSON = """async (text) => {
  const main = document.querySelector('script[type="module"]').src;
  const { parse, write } = await import(main.replace("main.js", "json.js"));
  return write(parse(text));
}"""


def test_json_is_written_as_it_was_read(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port)
    for text in (
        f"[{BIG},-{BIG},{10**400},{2**53 - 1},0,-7,1.5,true,null]",
        f'{{"{BIG}":"{BIG}","a\\"{BIG}":[{{"__proto__":{BIG}}}],"":"\\\\"}}',
        "[1e999,-1e999]",
        "{}",
        '"naïve 雪"',
    ):
        assert tab.page.evaluate(JSON, text) == text
    assert tab.page.evaluate(JSON, f" [ {BIG}.0 , 1e3, 1E+2 ] ") == f"[{2**53},1000,100]"
    with pytest.raises(PlaywrightError, match="SyntaxError"):
        tab.page.evaluate(JSON, f"[0{BIG}]")
