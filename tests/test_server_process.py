"""The command in processes of its own: a server that answers and drains, its workers, a reader that has gone."""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.tls import client_context
from tests.conftest import random_gaussians, write_corpus
from tests.serving import PATIENCE, Served, wait_until

COMMAND = [sys.executable, "-c", "from service.cli import main; main()"]
SEARCH = {"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1], "top_k": 3}

# Each starts processes that import everything.
pytestmark = pytest.mark.timeout(400)


class Server:
    """A `gaussearch serve` of its own, on a port that the system chooses; over HTTPS if there is a `trust`.

    `command` may be another way to call it."""

    def __init__(
        self,
        log: Path,
        *arguments: str,
        trust: ssl.SSLContext | None = None,
        command: Sequence[str] = COMMAND,
        **environment: str,
    ) -> None:
        self._log = log
        self._trust = trust
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [*command, "serve", *arguments], stderr=stream, env={**os.environ, **environment}
            )
        wait_until(lambda: self.process.poll() is not None or self._port())
        assert self.process.poll() is None, log.read_text()
        self.port: int = self._port() or 0
        self.url = f"{'https' if trust else 'http'}://127.0.0.1:{self.port}"
        wait_until(self._is_ready)

    def _port(self) -> int | None:
        found = re.search(r"running on https?://127\.0\.0\.1:(\d+)", self._log.read_text())
        return int(found[1]) if found else None

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.request("GET", "/readyz").status_code == 200
        return False

    def request(self, method: str, path: str, body: Any = None, headers: Any = None) -> httpx.Response:
        """One request on a connection of its own."""
        with httpx.Client(trust_env=False, timeout=PATIENCE, verify=self._trust or True) as client:
            return client.request(method, self.url + path, json=body, headers=headers)

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        # The last may be half written.
        return [json.loads(line) for line in self._log.read_text().rpartition("\n")[0].splitlines()]

    def stop(self) -> int:
        """Its exit status after SIGTERM."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers, each stopped at the end whatever happens."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **options: Any) -> Server:
        server = Server(tmp_path / f"log-{len(started)}", *arguments, **options)
        started.append(server.process)
        return server

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE)


def test_it_answers_and_finishes_what_is_under_way_before_it_ends(start: Callable[..., Server], served: Served) -> None:
    server = start(
        *("--port", "0", "--max-top-k", "8", "--no-verify"),
        GAUSSEARCH_INDEX=str(served.directory.path),
        GAUSSEARCH_MAX_TOP_K="7",
        GAUSSEARCH_MAX_QUERIES="6",
        GAUSSEARCH_PORT="1",
    )
    limits = server.request("GET", "/v1/index").json()["limits"]
    assert limits["max_top_k"] == 8, "the command line wins"
    assert limits["max_queries"] == 6, "the environment counts where the command line is silent"
    assert len(server.request("POST", "/v1/search", SEARCH).json()["results"]) == 3

    port = int(server.url.rsplit(":", 1)[1])
    body = json.dumps(SEARCH).encode()
    head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as under_way:
        under_way.sendall(head.encode() + body[:10])
        # Answered on another connection after this one's bytes were read, so the request has begun.
        server.request("POST", "/v1/search", SEARCH)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: any("Shutting down" in line["message"] for line in server.lines()))
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port))
        under_way.sendall(body[10:])
        assert under_way.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert server.process.wait(PATIENCE) == 0
    answered = [line for line in server.lines() if line["message"] == "POST /v1/search 200"]
    assert len(answered) == 3
    assert {"time", "level", "logger", "message", "request_id", "status", "milliseconds"} <= set(answered[0])


def test_workers_serve_side_by_side_and_their_metrics_add_up(start: Callable[..., Server], served: Served) -> None:
    server = start(
        *("--index", str(served.directory.path), "--port", "0", "--workers", "2"), GAUSSEARCH_TIMEOUT_MS="9999"
    )
    workers = psutil.Process(server.process.pid).children(recursive=True)
    # Each worker says so when it has loaded the index.
    wait_until(lambda: sum("serving generation 1" in line["message"] for line in server.lines()) == 2)
    for _ in range(20):
        assert server.request("POST", "/v1/search", SEARCH).status_code == 200
    assert server.request("GET", "/v1/index").json()["limits"]["timeout_ms"] == 9999

    def metrics() -> dict[tuple[str, str | None, str | None], float]:
        return {
            (sample.name, sample.labels.get("route"), sample.labels.get("status")): sample.value
            for family in text_string_to_metric_families(server.request("GET", "/metrics").text)
            for sample in family.samples
        }

    # Of another worker's answer this one may hear a moment after the client has.
    wait_until(lambda: metrics()["gaussearch_requests_total", "/v1/search", "200"] == 20)
    assert metrics()["gaussearch_scanned_documents_total", None, None] == 20 * 60
    assert metrics()["gaussearch_index_generation", None, None] == 1
    assert metrics()["gaussearch_index_documents", None, None] == 60
    assert server.stop() == 0
    psutil.wait_procs(workers, timeout=PATIENCE)
    assert not any(worker.is_running() for worker in workers)


def test_workers_have_the_secrets_that_the_command_was_given(
    start: Callable[..., Server], served: Served, tmp_path: Path
) -> None:
    """Keys by option and by file, and an encrypted private key: none of them in the environment that was inherited."""
    (tmp_path / "keys").write_text("a key of a file, and long\n")
    files = Path(__file__).parent / "tls"
    server = start(
        *("--index", str(served.directory.path), "--port", "0", "--workers", "2"),
        *("--api-key", "first-key,second-key", "--api-key-file", str(tmp_path / "keys")),
        *("--tls-certificate", str(files / "certificate.pem"), "--tls-key", str(files / "encrypted.pem")),
        *("--tls-key-password", "sesame", "--max-header-bytes", "4321"),
        trust=client_context(files / "certificate.pem"),
    )
    wait_until(lambda: sum("serving generation 1" in line["message"] for line in server.lines()) == 2)
    for _ in range(8):
        for key in ("first-key", "second-key", "a key of a file, and long"):
            answer = server.request("GET", "/v1/index", headers={"X-API-Key": key})
            assert answer.json()["limits"]["max_header_bytes"] == 4321
        assert server.request("GET", "/v1/index").status_code == 401
        assert server.request("GET", "/livez", headers={"X": "x" * 5000}).status_code == 431
    assert server.stop() == 0
    logged = json.dumps(server.lines())
    assert not any(secret in logged for secret in ("first-key", "second-key", "a key of a file", "sesame"))


def test_a_reader_that_has_seen_enough_is_no_error(served: Served, tmp_path: Path) -> None:
    """As in `gaussearch search ... | head -1`: here the reader has gone before the first line."""
    queries = write_corpus(tmp_path / "queries.parquet", random_gaussians(2, 5), ["q1", "q2"])
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [*COMMAND, "search", "--index", str(served.directory.path), "--queries", str(queries), "--format", "jsonl"],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")
