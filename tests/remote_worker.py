"""A program that does what it is told with an index in object storage, each time in a fork: processes that have
imported everything, and begin at once.

    python -m tests.remote_worker

Reads lines of JSON: {"do": task, "result": file, "environment": {...}, ...} begins a task and prints its process id,
and {"wait": pid} prints its exit status. A task writes what it has to say into its file.

The process that is forked has asked storage nothing: obstore's threads do not outlive a fork.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore.store  # noqa: F401 (so that no fork has to)

import index.remote.client
import index.remote.remote_index
from index import (
    BuildOptions,
    LocalSearcher,
    WriteOptions,
    add_documents,
    build_index,
    delete_documents,
    roll_back,
)
from tests.conftest import random_gaussians, write_corpus
from tests.faults import in_a_fork
from tests.object_storage import QUICK

QUERIES = 3


def search(uri: str, **_: Any) -> Any:
    """The ids and scores of some queries, after the index has been opened and every checksum compared."""
    searcher = LocalSearcher(uri, device="cpu")
    found = searcher.search(random_gaussians(QUERIES, searcher.manifest.k, seed=5), 5)
    return {
        "generation": searcher.manifest.generation,
        "ids": [list(each.ids) for each in found],
        "scores": [each.scores.tolist() for each in found],
    }


def hold(uri: str, result: str, **_: Any) -> Any:
    """Opens the index, says so, and keeps it open until it is killed."""
    searcher = LocalSearcher(uri, device="cpu")
    told(result, {"generation": searcher.manifest.generation})
    signal.pause()


def delete(uri: str, ids: list[str], **_: Any) -> Any:
    return {"generation": delete_documents(ids, uri, WriteOptions(wait=60)).manifest.generation}


def add(uri: str, source: str, **_: Any) -> Any:
    return {"generation": add_documents([source], uri).manifest.generation}


def build(uri: str, source: str, **_: Any) -> Any:
    return {"generation": build_index([source], uri, BuildOptions(device="cpu")).manifest.generation}


def back(uri: str, generation: int, **_: Any) -> Any:
    return {"generation": roll_back(uri, generation).generation}


TASKS: dict[str, Callable[..., Any]] = {
    "search": search,
    "hold": hold,
    "delete": delete,
    "add": add,
    "build": build,
    "back": back,
}


def told(result: str, said: Any) -> None:
    beside = Path(f"{result}.tmp")
    beside.write_text(json.dumps(said))
    beside.replace(result)


def warm_up() -> list[str]:
    """Does all that tasks do, in a folder; the modules that this imports on first use."""
    before = set(sys.modules)
    with tempfile.TemporaryDirectory() as folder:
        ids = [f"d{row}" for row in range(12)]
        corpus = write_corpus(Path(folder, "corpus.parquet"), random_gaussians(12, 4), ids)
        build(f"{folder}/index", str(corpus))
        more = write_corpus(Path(folder, "more.parquet"), random_gaussians(2, 4), ["a", "d3"])
        add(f"{folder}/index", str(more))
        delete(f"{folder}/index", ["d1"])
        back(f"{folder}/index", 2)
        search(f"{folder}/index")
    return [name for name, module in sys.modules.items() if name not in before and getattr(module, "__spec__", None)]


def main() -> None:
    for module in in_a_fork(warm_up):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.freeze()
    index.remote.client.PATIENCE = QUICK
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            status = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
            print(status, flush=True)
            continue
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        os.environ.update(asked.pop("environment"))
        try:
            told(asked["result"], TASKS[asked.pop("do")](**asked))
        except Exception as error:  # noqa: BLE001 (it is what is reported)
            told(asked["result"], {"error": type(error).__name__, "message": str(error)})
        finally:
            os._exit(0)


if __name__ == "__main__":
    main()
