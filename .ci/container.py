"""Run inside the image by .ci/run: index the sample, serve it, and compare the answers with scores computed here.

/corpus holds the sample's two files and /index is the volume; both commands are the ones the image documents.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

INDEX = Path("/index")
BUILD = ["python", "/opt/gaussearch/scripts/build_index.py", "/corpus/documents.parquet", "--index", str(INDEX)]
SERVE = ["gaussearch", "serve"]
QUERIES = 20
TOP_K = 10
# Found of the true top 10. The service may scan approximately, so one in a hundred may be missing and no more.
LEAST_RECALL = 0.99

Floats = npt.NDArray[np.float64]


def check(holds: bool, what: str) -> None:
    print(f"{'ok' if holds else 'FAILED'}: {what}", flush=True)
    if not holds:
        sys.exit(1)


def call(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["GAUSSEARCH_PORT"]), timeout=30)
    try:
        headers = {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def is_ready() -> bool:
    try:
        return call("GET", "/readyz")[0] == 200
    except OSError:
        return False


@contextmanager
def running_service() -> Iterator[None]:
    """The image's default command, from start to a clean stop."""
    service = subprocess.Popen(SERVE)
    try:
        deadline = time.monotonic() + 120
        while not is_ready() and service.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        check(is_ready(), "the service starts with an index it may not write to")
        yield
        service.terminate()
        check(service.wait(timeout=60) in (0, -15), "the service stops when asked to")
    finally:
        if service.poll() is None:
            service.kill()


def starts_as_it_is() -> bool:
    """Whether the default command runs with the image's own settings; it must end before it listens."""
    try:
        ended = subprocess.run(SERVE, check=False, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return True
    return ended.returncode != 1 or "GAUSSEARCH_ALLOW_ANONYMOUS=true" not in ended.stderr


def gaussians(table: pa.Table) -> tuple[Floats, Floats]:
    mean, variance = (
        np.stack(table[name].to_numpy(zero_copy_only=False)).astype(np.float64) for name in ("mean", "variance")
    )
    return mean, variance


def negative_kl(mean: Floats, variance: Floats, means: Floats, variances: Floats) -> Floats:
    """-KL(Q || D) of one query and all documents, term by term as in the textbook."""
    terms = np.log(variances / variance) + (variance + (mean - means) ** 2) / variances - 1
    scores: Floats = -0.5 * terms.sum(axis=1)
    return scores


def search_and_compare() -> None:
    documents = pq.read_table("/corpus/documents.parquet")
    queries = pq.read_table("/corpus/queries.parquet").slice(0, QUERIES)
    ids = documents["id"].to_pylist()
    means, variances = gaussians(documents)
    found = 0
    error = 0.0
    for mean, variance in zip(*gaussians(queries), strict=True):
        scores = dict(zip(ids, negative_kl(mean, variance, means, variances), strict=True))
        body = {"mean": mean.tolist(), "variance": variance.tolist(), "top_k": TOP_K}
        status, answer = call("POST", "/v1/search", body)
        if status != 200:
            check(False, f"a search answers {status}: {answer!r}")
        results = json.loads(answer)["results"]
        found += len({result["id"] for result in results} & set(sorted(ids, key=scores.__getitem__)[-TOP_K:]))
        error = max([error, *(abs(result["score"] - scores[result["id"]]) for result in results)])
    check(found >= LEAST_RECALL * QUERIES * TOP_K, f"{found} of the {QUERIES * TOP_K} best documents found over HTTP")
    check(error < 1e-3, f"scores are -KL, to within {error:.1e} nats")


def has_page() -> bool:
    """Whether the page is served, and everything that it names."""
    status, page = call("GET", "/")
    names = re.findall(r'(?:href|src)="(page/[^"]+)"', page.decode())
    return status == 200 and len(names) > 0 and all(call("GET", f"/{name}")[0] == 200 for name in names)


def stray_files() -> list[Path]:
    """Files of this user where nothing may be written: the root file system may be read-only."""
    stray: list[Path] = []
    for top in set(Path("/").iterdir()) - {Path(f"/{name}") for name in ("index", "tmp", "proc", "sys", "dev", "run")}:
        stray += [path for path in [top, *top.rglob("*")] if path.lstat().st_uid == os.getuid()]
    return stray


def listen_on_a_free_loopback_port() -> None:
    """The host's network is used here: the image's own address and port could reach out, or be taken."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"GAUSSEARCH_HOST": "127.0.0.1", "GAUSSEARCH_PORT": str(free.getsockname()[1])}


def main() -> None:
    check(os.getuid() == 10001, f"the image's user is {os.getuid()}")
    check(subprocess.run(BUILD, check=False).returncode == 0, "the batch build indexes the sample")
    for path in [INDEX, *INDEX.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    check(not starts_as_it_is(), "without a key the service does not listen for others, and says what to set")
    listen_on_a_free_loopback_port()
    with running_service():
        check(call("GET", "/livez")[0] == 200, "the service lives")
        check(has_page(), "the page and its files are in the image")
        search_and_compare()
    check(not (stray := stray_files()), f"nothing is written outside /index and /tmp {stray[:5]}")


if __name__ == "__main__":
    main()
