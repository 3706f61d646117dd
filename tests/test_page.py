"""The page in a real browser, over a real service: what is asked, and what is shown."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from index import IndexDirectory, LocalSearcher, build_index
from index.text import Role
from service.app import create_app
from service.settings import ServiceSettings
from tests.browsing import Tab
from tests.serving import listening
from tests.word_encoder import WordEncoder

OpenTab = Callable[..., Tab]
BIT = "n02844714"
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def port(dictionary: IndexDirectory) -> Iterator[int]:
    with listening(create_app(ServiceSettings(index=dictionary.path))) as chosen:
        yield chosen


@pytest.fixture
def tab(open_tab: OpenTab, port: int) -> Tab:
    return open_tab(port)


@pytest.fixture(scope="module")
def searcher(dictionary: IndexDirectory) -> LocalSearcher:
    return LocalSearcher(dictionary)


def neighbours(searcher: LocalSearcher, document: str, count: int, **options: Any) -> list[str]:
    (ranking,) = searcher.search(searcher.document(document).gaussian, count + 1, **options)
    return ranking.without(document).ids[:count]


def test_a_document_finds_its_neighbours_and_the_page_says_how(tab: Tab, searcher: LocalSearcher) -> None:
    tab.search(BIT)
    tab.shows(neighbours(searcher, BIT, 10))
    tab.sees("bit: piece of metal held in horse's mouth")
    expect(tab.page.get_by_role("status")).to_contain_text("10 results in")
    expect(tab.page.get_by_role("status")).to_contain_text("proven exact")
    facts = tab.page.locator(".facts").inner_text().replace("\n", " ")
    assert "Scanned 4,000" in facts
    assert "Scored exactly 21" in facts
    tab.page.get_by_text("✓ Proven exact").click()
    tab.sees("no document that was left out scores higher")


def test_what_is_shown_of_a_result_is_what_the_service_says(tab: Tab, searcher: LocalSearcher) -> None:
    with tab.page.expect_response("**/similar") as caught:
        tab.search(BIT)
    (first, *_) = [each for each in caught.value.json()["results"] if each["id"] != BIT]
    shown = tab.page.locator(".result").first
    assert f"{first['score']:.3f}".replace("-", MINUS) in shown.locator(".score").inner_text()
    parts = shown.locator(".parts dd").all_text_contents()
    explanation = first["explanation"]
    wanted = [explanation[name] for name in ("log_determinant", "trace", "mahalanobis")]
    assert [float(part.replace(MINUS, "-")) for part in parts] == pytest.approx(wanted, abs=0.006)
    assert sum(wanted) == pytest.approx(-first["score"])
    assert [int(text) for text in shown.locator(".dimension").all_text_contents()] == explanation["dimensions"]
    expect(shown.locator(".bells path.query")).to_have_count(5)
    expect(shown.locator(".bells path.document")).to_have_count(5)
    document = searcher.document(first["id"]).gaussian
    telling = explanation["dimensions"][0]
    mean, deviation = float(document.means[0][telling]), float(document.variances[0][telling]) ** 0.5
    assert f"document {mean:.2f} ± {deviation:.2f}".replace("-", MINUS) in shown.locator(".bells").inner_text()


def test_details_show_everything_that_a_document_holds(tab: Tab) -> None:
    tab.search(BIT)
    first = tab.page.locator(".result").first
    opener = first.get_by_role("button", name="Details")
    opener.click()
    expect(opener).to_have_attribute("aria-expanded", "true")
    expect(first.locator(".payload dt")).to_have_text(["id", f"{MINUS}KL in nats", "text", "part", "words"])
    expect(first.locator("tbody tr")).to_have_count(5)
    opener.click()
    expect(first.locator(".details")).to_be_hidden()


def test_more_like_this_goes_on_and_back_comes_back(tab: Tab, searcher: LocalSearcher) -> None:
    tab.search(BIT)
    nearest = neighbours(searcher, BIT, 1)[0]
    tab.page.get_by_role("button", name="More like this").first.click()
    expect(tab.page.get_by_role("heading", name=f"More like {nearest}")).to_be_visible()
    tab.shows(neighbours(searcher, nearest, 10))
    tab.page.go_back()
    expect(tab.page.get_by_role("heading", name=f"More like {BIT}")).to_be_visible()
    tab.shows(neighbours(searcher, BIT, 10))


def test_an_address_is_a_search(open_tab: OpenTab, port: int, searcher: LocalSearcher) -> None:
    wanted = {"words": {"gte": 20}}
    tab = open_tab(port, f"#search?by=document&q={BIT}&k=5&filter={json.dumps(wanted)}")
    expect(tab.page.locator(".result")).to_have_count(5)
    tab.shows(neighbours(searcher, BIT, 5, filter=wanted))
    tab.page.reload()
    expect(tab.page.locator(".result")).to_have_count(5)


def test_a_gaussian_is_known_when_it_is_pasted(tab: Tab, sample: Path) -> None:
    body = (sample / "query.json").read_text()
    tab.box.fill(body)
    expect(tab.page.get_by_role("radio", name="Gaussian")).to_be_checked()
    tab.box.press("Enter")
    expect(tab.page.locator(".result")).to_have_count(json.loads(body)["top_k"])
    tab.shows(["n02844714", "n14263440"])
    variance = np.array(json.loads(body)["variance"])
    shown = tab.page.locator(".question dd").all_text_contents()
    assert shown == [f"{np.log(variance).sum():.1f}".replace("-", MINUS), f"{variance.mean():.4f}"]


def test_a_search_begins_somewhere_without_any_id(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Show me some documents").click()
    expect(tab.page.locator(".result")).to_have_count(10)


def test_filters_are_put_together_and_taken_apart(tab: Tab, searcher: LocalSearcher) -> None:
    tab.search(BIT)
    page = tab.page
    page.get_by_role("button", name="Filter", exact=True).click()
    for field, operator, value in (("words", "gte", "12"), ("words", "lt", "30"), ("part", "isnot", "noun")):
        page.locator("#filter-field").fill(field)
        page.locator("#filter-operator").select_option(operator)
        page.locator("#filter-value").fill(value)
        page.locator("#filter-value").press("Enter")
    wanted = {"words": {"gte": 12, "lt": 30}, "not": {"part": "noun"}}
    assert json.loads(page.locator("#filter").input_value()) == wanted
    found = neighbours(searcher, BIT, 10, filter=wanted)
    expect(page.locator(".result h3").first).to_have_text(found[0])
    tab.settled()
    tab.shows(found)
    count = searcher.matching(wanted)
    assert f"Pass the filter {count:,}" in page.locator(".facts").inner_text().replace("\n", " ")
    page.get_by_role("button", name="Remove not").click()
    expect(page.locator("#conditions li")).to_have_text(["words ≥ 12 and < 30 \N{MULTIPLICATION SIGN}"])
    left = neighbours(searcher, BIT, 10, filter={"words": {"gte": 12, "lt": 30}})
    expect(page.locator(".result h3").first).to_have_text(left[0])


def test_a_field_of_a_result_is_a_filter(tab: Tab, searcher: LocalSearcher) -> None:
    tab.search(BIT)
    tab.page.get_by_role("button", name="part noun").first.click()
    expect(tab.page.get_by_role("button", name="Remove part = noun")).to_be_visible()
    expect(tab.page.locator(".facts")).to_contain_text("Pass the filter")
    tab.shows(neighbours(searcher, BIT, 10, filter={"part": "noun"}))


def test_nothing_is_found_where_nothing_passes(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Filter", exact=True).click()
    tab.page.locator("#filter").fill('{"words": {"gt": 100000}}')
    tab.search(BIT)
    tab.sees("No document is found")
    tab.sees("The filter lets none through")


@pytest.fixture
def with_model(tab: Tab, searcher: LocalSearcher) -> Tab:
    """The page of a service that seems to have a model, whose Gaussians are all those of a document, to search codes,
    and to have met a damaged generation."""
    gaussian = searcher.document(BIT).gaussian

    def described(route: Route) -> None:
        answer = route.fetch()
        model: dict[str, Any] = {"name": "mrl-tiny", "encoder": "mrl", "k": 128, "fingerprint": "0f" * 8}
        recall: dict[str, Any] = {"at": 10, "recall": 0.991, "low": 0.985, "high": 0.995}
        recall |= {"queries": 1000, "source": "queries", "candidates": 60, "target": 0.99}
        reload = {"failures": 1, "last_error": "CorruptIndexError: segments/1 has been cut short"}
        changed = {"model": model, "reads_text": True, "kind": "fastscan", "measured_recall": recall, "reload": reload}
        route.fulfill(response=answer, json={**answer.json(), **changed})

    def searched(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        text = body.pop("text")
        body |= {"mean": gaussian.means[0].tolist(), "variance": gaussian.variances[0].tolist()}
        answer = route.fetch(post_data=json.dumps(body))
        uncertainty = {"log_determinant": -12.5 * len(text), "mean_variance": 0.25}
        search = {"scanned": 4000, "candidates": 60, "proven": False, "proof": None}
        search = answer.json()["search"] if body.get("exact") else search
        route.fulfill(response=answer, json={**answer.json(), "uncertainty": uncertainty, "search": search})

    tab.page.route("**/v1/index", described)
    tab.page.route("**/v1/search", searched)
    tab.page.reload()
    return tab


def test_text_is_searched_with_where_there_is_a_model(with_model: Tab) -> None:
    tab = with_model
    expect(tab.page.get_by_role("radio", name="Text")).to_be_checked()
    tab.sees("Encoded by mrl-tiny")
    tab.search("metal", "Text")
    assert tab.results()[0] == BIT
    assert tab.page.locator(".question dd").all_text_contents() == [f"{MINUS}62.50", "0.2500"]
    tab.sees("Not proven · measured recall@10 0.991")
    tab.is_accessible("a text")
    tab.page.get_by_role("checkbox", name="Scan everything").check()
    tab.sees("✓ Proven exact")
    tab.page.get_by_role("link", name="Index").click()
    tab.sees("encoder mrl")
    tab.sees("0.985 to 0.995, 95% confidence")
    tab.sees("A newer generation cannot be served, this one stays: CorruptIndexError: segments/1 has been cut short")
    tab.is_accessible("an index with a model and a fault")


def test_words_are_read_by_the_services_model(
    open_tab: OpenTab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = WordEncoder()
    monkeypatch.setattr("service.encoding.load_encoder", lambda *_, **__: encoder)
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(f'{{"_id": "d{row}", "text": "text {row}"}}\n' for row in range(40)))
    directory = IndexDirectory(tmp_path / "texts")
    build_index([source], directory, encoder=encoder)
    with listening(create_app(ServiceSettings(index=directory.path, model="given"))) as port:
        tab = open_tab(port)
        tab.sees("Encoded by words")
        tab.search("text 7", "Text")
        query = encoder.encode(["text 7"], Role.QUERY)
        (ranking,) = LocalSearcher(directory).search(query, 10)
        tab.shows(ranking.ids)
        shown = tab.page.locator(".question dd").all_text_contents()
        assert float(shown[1]) == pytest.approx(float(query.variances.mean()), abs=1e-4)


def test_the_index_is_described_and_its_numbers_move(tab: Tab) -> None:
    page = tab.page
    tab.search(BIT)
    page.get_by_role("link", name="Index").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("wordnet")
    for text in ("4,000", "every result is proved", "max_top_k", "Rows that wait to be compacted away"):
        tab.sees(text)
    plots = page.locator(".plot")
    expect(plots).to_have_count(4)
    expect(page.locator(".plot canvas")).to_have_count(4)
    busy(page, 40)
    throughput = page.get_by_role("img", name="Throughput, a second, over the last minutes")
    expect(throughput).not_to_have_accessible_name(re.compile("queries (\N{EN DASH}|0\\.0)"))
    expect(page.get_by_role("img", name="Latency, ms")).to_have_accessible_name(re.compile(r"median \d"))
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    expect(page.get_by_role("button", name="Go on")).to_have_attribute("aria-pressed", "true")


def busy(page: Page, requests: int) -> None:
    """Sends searches from the page."""
    page.evaluate(
        """async ([id, count]) => {
          const send = () => fetch(`v1/documents/${id}/similar`, { method: "POST", body: "{}" });
          await Promise.all(Array.from({ length: count }, send));
        }""",
        [BIT, requests],
    )
