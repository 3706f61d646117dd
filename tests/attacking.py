"""A program that attacks indexes of every kind and says what came of each attack: one line of JSON for each.

    python -m tests.attacking FOLDER SET ... < KINDS

KINDS has a kind of tests.hostile a line, of each of which an index is made in FOLDER, unless it is there. SET is files,
crafted, fields (every number that FAISS may read, by several others), or fuzz:SEED:COUNT.

Attacks are made in forks of this process, which has imported everything and started no threads, so that what kills one
is a result like others and the next attack goes on in another. A fork may take no more memory than there is now and
MEMORY bytes, and no more than SECONDS seconds for an attack.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from index import Filter, GaussearchError, Gaussians, IndexDirectory, LocalSearcher
from tests.crafted import crafted_attacks
from tests.crafted_faiss import field_attacks
from tests.hostile import Attack, K, attacks_on_files, content, files_of, make, sign

MEMORY, SECONDS = 1 << 31, 60
QUERIES = Gaussians.from_arrays(np.linspace(-1, 1, 3 * K).reshape(3, K), np.linspace(0.1, 2, 3 * K).reshape(3, K))


def use(root: Path, verify: bool) -> str:
    """Opens an index and asks it for everything that it can be asked for; what is answered is not looked at."""
    searcher = LocalSearcher(IndexDirectory(root), device="cpu", threads=1, verify=verify)
    has_lists = searcher.manifest.codes is not None and searcher.manifest.codes.list_count is not None
    said = "opened"
    asked: list[Callable[[], Any]] = [
        lambda: searcher.search(QUERIES, 5),
        lambda: searcher.search(QUERIES, 5, exact=True),
        lambda: searcher.search(QUERIES, 5, filter=Filter.parse({"text": {"in": ["index 3", "no"]}})),
        lambda: searcher.search(QUERIES, 5, filter=Filter.parse({"text": {"gte": "index 5"}})),
        lambda: searcher.search(QUERIES, 1000, candidates=10**6, nprobe=10**6 if has_lists else None),
        lambda: searcher.payloads(searcher.search(QUERIES[:1], 20)[0].documents),
        lambda: searcher.explain(QUERIES[:1], np.arange(5)),
        lambda: [searcher.document_at(number) for number in range(0, len(searcher), 20)],
        lambda: [searcher.document(name) for name in ("d0", "d150")],
    ]
    if verify:
        IndexDirectory(root).verify()
    for ask in asked:
        try:
            ask()
        except GaussearchError as error:
            said = f"opened, then {type(error).__name__}: {error}"
    return said


def attack(attacked: Attack, folder: Path) -> Iterator[dict[str, Any]]:
    """What comes of one attack, with every byte verified and without."""
    root = folder / "attacked"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(folder / "index", root)
    attacked.change(root, folder / "twin")
    if attacked.signed:
        sign(root, attacked.file)
    for verify in (True, False):
        try:
            error, message = "", use(root, verify)
        except Exception as caught:  # noqa: BLE001 (it is what is asked for)
            error, message = type(caught).__name__, str(caught)
            if not isinstance(caught, GaussearchError):
                error = f"unexpected {error}"
        yield {"verify": verify, "error": error, "message": message, "path": str(root / attacked.file)}


def limit() -> None:
    """Keeps this process from taking more memory or leaving an image of it behind."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def in_forks(attacks: Sequence[Attack], folder: Path) -> Iterator[dict[str, Any]]:
    """What comes of each attack, in as many processes as it takes."""
    done = 0
    while done < len(attacks):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            status = 1
            try:
                limit()
                for number in range(done, len(attacks)):
                    os.write(writer, json.dumps({"begun": number}).encode() + b"\n")
                    signal.alarm(SECONDS)
                    for result in attack(attacks[number], folder):
                        os.write(writer, json.dumps({"number": number, **result}).encode() + b"\n")
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        begun = done
        with os.fdopen(reader, "rb") as pipe:
            for line in pipe:
                result = json.loads(line)
                begun = result.get("begun", begun)
                if "number" in result:
                    yield described(attacks[result.pop("number")], result)
        status = os.waitpid(child, 0)[1]
        done = begun + 1
        if status != 0 or done < len(attacks):
            how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
            yield described(attacks[begun], {"verify": None, "error": f"died of {how}", "message": "", "path": ""})


def described(attacked: Attack, result: dict[str, Any]) -> dict[str, Any]:
    return {"attack": attacked.name, "file": attacked.file, "signed": attacked.signed, **result}


def fuzzed(root: Path, seed: int, count: int) -> Iterator[Attack]:
    """Attacks that write random bytes, and numbers that are often trouble, to random places of random files."""
    rng = random.Random(seed)
    names = [name for name in files_of(root) if name != "CURRENT"]
    for number in range(count):
        name = rng.choice(names)
        data = bytearray((root / name).read_bytes())
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            near = rng.choice((64, 256, len(data), len(data)))
            place = rng.randrange(min(near, len(data)))
            data[place : place + rng.choice((1, 4, 8))] = rng.choice(
                (rng.randbytes(1), rng.randbytes(4), b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\0\1\0\0\0")
            )
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        yield content(f"fuzz {seed}.{number}", name, bytes(data))


def attacks_of(sets: str, kind: str, root: Path) -> list[Attack]:
    if sets == "files":
        return list(attacks_on_files(root, kind))
    if sets == "crafted":
        return list(crafted_attacks(kind, root))
    if sets == "fields":
        return list(field_attacks(root))
    _, seed, count = sets.split(":")
    return list(fuzzed(root, int(seed), int(count)))


def ready(folder: Path, kind: str) -> Path:
    """The folder of an index of that kind and its twin, which are made where they are not there, in a fork."""
    its = folder / kind.replace(",", "-").replace(" ", "-")
    if not its.exists():
        if os.fork() == 0:
            status = 1
            try:
                make(its, kind)
                status = 0
            finally:
                os._exit(status)
        if os.wait()[1] != 0:
            sys.exit(f"no index of kind {kind} could be made")
    return its


def main(folder: Path, sets: Sequence[str]) -> None:
    for kind in map(str.strip, sys.stdin):
        its = ready(folder, kind)
        for name in sets:
            for result in in_forks(attacks_of(name, kind, its / "index"), its):
                print(json.dumps({"kind": kind, "set": name.split(":")[0], **result}), flush=True)
        print(json.dumps({"done": kind}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
