"""The page as files: what a service answers for them, that a package contains them, and where they come from."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from index import IndexDirectory
from service.app import create_app
from service.page import FOLDER, POLICY
from service.settings import ServiceSettings
from tests.browsing import Tab
from tests.conftest import Serve
from tests.serving import Client, Served, listening

ROOT = Path(__file__).resolve().parent.parent
FILES = [path for path in FOLDER.rglob("*") if path.is_file()]


def named(client: Client) -> list[str]:
    """The files that the page names."""
    return re.findall(r'(?:href|src)="(page/[^"]+)"', client.get("/").text)


def test_the_page_and_its_files_need_no_key_and_what_they_ask_for_does(served: Served, serve: Serve) -> None:
    client = serve(served.directory, api_key="a-key")
    assert client.get("/").status_code == 200
    assert len(named(client)) > 7
    for name in named(client):
        assert client.get(f"/{name}").status_code == 200
    assert client.get("/v1/index").status_code == 401


def test_a_browser_may_run_and_load_what_lies_here_and_nothing_else(client: Client) -> None:
    response = client.get("/")
    assert response.headers.get_list("content-security-policy") == [POLICY]
    policy = dict(part.split(" ", 1) for part in POLICY.split("; "))
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert set(policy.values()) == {"'none'", "'self'"}
    assert (policy["default-src"], policy["frame-ancestors"], policy["base-uri"]) == ("'none'",) * 3
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    for name in ("/", *(f"/{each}" for each in named(client))):
        assert client.get(name).headers.get_list("x-content-type-options") == ["nosniff"]


def test_nothing_stands_inline_and_no_script_makes_markup() -> None:
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)|javascript:|https?:", page)
    own = [path for path in FILES if path.suffix == ".js" and "libraries" not in path.parts]
    assert len(own) >= 10
    for path in own:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", text), path
        addresses = set(re.findall(r"https?://[^\s\"'`]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path


def test_files_are_kept_for_good_and_the_page_is_asked_for_again(client: Client) -> None:
    page = client.get("/")
    assert page.headers.get_list("cache-control") == ["no-cache"]
    for path in ("/", f"/{named(client)[0]}"):
        response = client.get(path)
        tag = response.headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            again = client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
            assert again.headers["cache-control"] == response.headers["cache-control"]
        assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
        head = client.request("HEAD", path)
        assert (head.status_code, head.content) == (200, b"")
    assert client.get(f"/{named(client)[0]}").headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize(
    "path", ["/page/", "/page/index.html", "/page/0123/main.js", "/page/../routes.py", "/page.css"]
)
def test_nothing_else_is_served(client: Client, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert response.headers["cache-control"] == "no-store"


def test_types_are_what_browsers_insist_on(client: Client) -> None:
    found = {name.rpartition(".")[2]: client.get(f"/{name}").headers["content-type"] for name in named(client)}
    assert found == {
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
        "woff2": "font/woff2",
    }
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"


def test_it_is_switched_off_by_a_setting(served: Served, serve: Serve) -> None:
    client = serve(served.directory, page=False)
    for path in ("/", "/page/0123/main.js"):
        assert (client.get(path).status_code, client.get(path).json()["code"]) == (404, "not_found")
    assert client.get("/v1/index").status_code == 200


def test_it_takes_no_method_but_reading(client: Client) -> None:
    response = client.post("/", {})
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD"


def test_a_wheel_has_every_file_of_it(tmp_path: Path) -> None:
    """And so has the image, which is made of one."""
    source = tmp_path / "source"
    for name in ("index", "service"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "sample/wordnet/LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert {f"service/static/{path.relative_to(FOLDER).as_posix()}" for path in FILES} <= set(packed.namelist())


def test_libraries_are_as_they_were_taken_and_bring_their_licences() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "update_page_libraries.py"))
    assert script["differences"]() == []
    record = json.loads((FOLDER / "libraries" / "libraries.json").read_text(encoding="utf-8"))
    for each in record:
        (licence,) = [name for name in each["files"] if name.endswith("/LICENSE")]
        text = (FOLDER / "libraries" / licence).read_text(encoding="utf-8")
        assert {"MIT": "Permission is hereby granted", "OFL-1.1": "SIL OPEN FONT LICENSE"}[each["licence"]] in text


def test_a_library_that_was_changed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "update_page_libraries.py"))
    copied = tmp_path / "libraries"
    shutil.copytree(FOLDER / "libraries", copied)
    (copied / "uplot" / "uPlot.js").write_text("changed")
    (copied / "inter" / "LICENSE").unlink()
    (copied / "another.js").write_text("")
    monkeypatch.setitem(script["differences"].__globals__, "LIBRARIES", copied)
    assert script["differences"]() == [
        "another.js is not recorded",
        "inter/LICENSE is missing",
        "uplot/uPlot.js is not as it was taken",
    ]


@pytest.fixture(scope="module")
def tab(browser: Browser, dictionary: IndexDirectory) -> Iterator[Tab]:
    """The page, whose modules a test may call."""
    with listening(create_app(ServiceSettings(index=dictionary.path))) as port:
        opened = Tab.open(browser, port)
        yield opened
        opened.close()


METRICS = """async ([share, bounds, counts]) => {
  const main = document.querySelector('script[type="module"]').src;
  const { percentile } = await import(main.replace("main.js", "metrics.js"));
  return percentile(bounds.map((bound, at) => [bound ?? Infinity, counts[at]]), share);
}"""


def test_percentiles_are_those_of_the_counted_values_to_within_a_bucket(tab: Tab) -> None:
    bounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0]
    values = np.random.default_rng(5).lognormal(-4.5, 0.8, 2000)
    counts = [int((values <= bound).sum()) for bound in bounds] + [len(values)]
    for share in (0.5, 0.95, 0.99):
        found = tab.page.evaluate(METRICS, [share, [*bounds, None], counts])
        true = float(np.quantile(values, share))
        place = int(np.searchsorted(bounds, true))
        assert ([0.0, *bounds][place]) <= found <= bounds[place]
        assert found == pytest.approx(true, rel=0.5)
    assert tab.page.evaluate(METRICS, [0.5, [0.1, None], [0, 0]]) is None
    assert tab.page.evaluate(METRICS, [0.5, [0.1, None], [0, 7]]) == 0.1
    assert tab.page.evaluate(METRICS, [0.5, [0.2, None], [10, 10]]) == pytest.approx(0.1)


READINGS = """async (texts) => {
  const main = document.querySelector('script[type="module"]').src;
  const { between, parse, reading } = await import(main.replace("main.js", "metrics.js"));
  const [earlier, later] = texts.map((text, at) => reading(parse(text), 2 * at));
  return between(earlier, later);
}"""


def metrics(requests: int, fast: int, rows: int) -> str:
    route = 'route="/v1/search"'
    return f"""# HELP gaussearch_request_seconds Time to answer.
gaussearch_request_seconds_bucket{{le="0.01",{route}}} {fast}.0
gaussearch_request_seconds_bucket{{le="+Inf",{route}}} {requests}.0
gaussearch_request_seconds_count{{{route}}} {requests}.0
gaussearch_request_seconds_count{{route="/metrics"}} 99.0
gaussearch_batch_rows_sum {rows}.0
gaussearch_batch_rows_count {requests}.0
gaussearch_queue_rows 3.0
gaussearch_rejected_total{{reason="overloaded"}} 0.0
"""


def test_what_happened_is_the_difference_of_two_readings(tab: Tab) -> None:
    found = tab.page.evaluate(READINGS, [metrics(10, 10, 40), metrics(30, 30, 120)])
    latency = {"p50": 5, "p95": 9.5, "p99": 9.9}
    assert found == {"at": 2, "requests": 10, "queries": 40, **latency, "batch": 4, "waiting": 3, "refused": 0}
    assert tab.page.evaluate(READINGS, [metrics(30, 30, 30), metrics(2, 2, 2)]) is None, "it has started anew"
