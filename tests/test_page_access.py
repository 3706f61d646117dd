"""The page for everyone: by keyboard alone, in the dark, narrow, and by what axe finds in each view."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from index import IndexDirectory
from service.app import create_app
from service.settings import ServiceSettings
from tests.browsing import Tab
from tests.serving import listening

OpenTab = Callable[..., Tab]
BIT = "n02844714"
LIGHT, DARK = "rgb(249, 249, 251)", "rgb(17, 17, 19)"


@pytest.fixture(scope="module")
def port(dictionary: IndexDirectory) -> Iterator[int]:
    with listening(create_app(ServiceSettings(index=dictionary.path))) as chosen:
        yield chosen


def focused(tab: Tab) -> str:
    found: str = tab.page.evaluate("document.activeElement.closest('.result')?.querySelector('h3').textContent ?? ''")
    return found


def test_a_search_needs_no_mouse(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port)
    keyboard = tab.page.keyboard
    keyboard.press("/")
    expect(tab.box).to_be_focused()
    keyboard.type(BIT)
    keyboard.press("Enter")
    expect(tab.page.locator(".result")).to_have_count(10)
    found = tab.results()
    keyboard.press("ArrowDown")
    assert focused(tab) == found[0]
    keyboard.press("ArrowDown")
    keyboard.press("ArrowDown")
    assert focused(tab) == found[2]
    keyboard.press("ArrowUp")
    assert focused(tab) == found[1]
    keyboard.press("Enter")
    expect(tab.page.locator(".result").nth(1).locator(".details")).to_be_visible()
    outline = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    keyboard.press("End")
    assert focused(tab) == found[9]
    keyboard.press("Home")
    keyboard.press("ArrowUp")
    expect(tab.box).to_be_focused()
    keyboard.press("ArrowDown")
    keyboard.press("m")
    expect(tab.page.get_by_role("heading", name=f"More like {found[0]}")).to_be_visible()
    keyboard.press("/")
    assert tab.page.evaluate("getSelection().toString()") == found[0]


def test_every_control_is_on_the_way_of_the_tab_key(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port, f"#search?by=document&q={BIT}&k=5")
    expect(tab.page.locator(".result")).to_have_count(5)
    met = []
    for _ in range(16):
        tab.page.keyboard.press("Tab")
        met.append(
            tab.page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"
            )
        )
    assert met[:6] == ["skip", "to-search", "to-index", "theme", met[4], "top-k"]
    # One of the results, and the buttons of all.
    assert met.count("result") == 1
    assert {"filter-toggle", "query", "primary", "quiet similar", "quiet opener"} <= set(met)


def test_dark_is_as_the_system_has_it_unless_one_chooses(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port, color_scheme="dark")

    page = tab.page.locator("html")
    theme = tab.page.get_by_role("button", name="Theme:")
    expect(page).to_have_css("background-color", DARK)
    tab.page.emulate_media(color_scheme="light")
    expect(page).to_have_css("background-color", LIGHT)
    theme.click()
    expect(theme).to_have_accessible_name("Theme: Light")
    theme.click()
    expect(page).to_have_css("background-color", DARK)
    tab.page.reload()
    expect(page).to_have_css("background-color", DARK)
    assert tab.page.evaluate("({...localStorage})") == {"gaussearch-theme": "dark"}


def test_no_view_has_a_fault_that_axe_knows(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port)
    tab.sees("Show me some documents")
    tab.is_accessible("the beginning")
    tab.page.locator("#filter-toggle").click()
    tab.page.locator("#filter").fill('{"words": {"gte": 8}}')
    tab.search(BIT)
    tab.page.locator(".result").first.get_by_role("button", name="Details").click()
    tab.page.locator(".certificate summary").click()
    tab.is_accessible("results")
    tab.search("n02844714", "Document")
    tab.page.get_by_role("link", name="Index").click()
    expect(tab.page.locator(".plot canvas")).to_have_count(4)
    tab.is_accessible("the index")


@pytest.mark.parametrize("width", [320, 768])
def test_nothing_is_cut_off_where_it_is_narrow(open_tab: OpenTab, port: int, width: int) -> None:
    tab = open_tab(port, f"#search?by=document&q={BIT}&k=5", viewport={"width": width, "height": 800})
    expect(tab.page.locator(".result")).to_have_count(5)
    tab.page.locator(".result").first.get_by_role("button", name="Details").click()
    tab.page.locator("#filter-toggle").click()
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.page.evaluate(wide) == 0
    tab.page.get_by_role("link", name="Index").click()
    expect(tab.page.locator(".plot canvas")).to_have_count(4)
    assert tab.page.evaluate(wide) == 0


def test_nothing_moves_for_those_who_ask_for_that(open_tab: OpenTab, port: int) -> None:
    tab = open_tab(port, reduced_motion="reduce")
    moves = "(each) => getComputedStyle(each).transitionDuration !== '0s'"
    moving = f"[...document.querySelectorAll('button, nav a')].filter({moves}).length"
    assert tab.page.evaluate(moving) == 0
    assert open_tab(port, reduced_motion="no-preference").page.evaluate(moving) > 0
