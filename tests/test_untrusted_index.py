"""An index directory is untrusted input: whatever is in it, opening and searching end with an error that names a file,
or with an answer, and a running service keeps its last good generation.

The attacks are those of tests.hostile and tests.crafted; tests.attacking makes them, in processes that may die of them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from index import BuildOptions, IndexDirectory, LocalSearcher, build_index
from index.durable import checksum
from index.errors import CorruptIndexError
from index.untrusted import IndexFile
from tests.conftest import MakeIndex, Serve, random_gaussians, write_corpus
from tests.hostile import ALIKE, DOCUMENTS, KINDS, K, files_of, sign
from tests.serving import Client, wait_until

Results = list[dict[str, Any]]
Attacked = Callable[[str], Results]

FUZZED = 40
"""Random attacks on each kind."""
BELIEVED = ("gaussians.npy", "projected.npy", "payload.arrow", "ids.arrow", ".blake3")
"""Files that are memory-mapped, of which nothing but what can end the process is looked at unless all is verified; and
what only whoever goes back to a generation reads."""
REFUSALS = ("CorruptIndexError", "UnsupportedFormatError")

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """What comes of all attacks on an index of some kind."""
    folder, found = tmp_path_factory.mktemp("attacked"), dict[str, Results]()
    command = [sys.executable, "-m", "tests.attacking", str(folder), "files", "crafted", f"fuzz:1:{FUZZED}"]
    pipe, root = subprocess.PIPE, Path(__file__).parents[1]
    with (
        (folder / "stderr").open("w") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, cwd=root) as process,
    ):
        asked, answered = process.stdin, process.stdout
        assert asked is not None
        assert answered is not None

        def results(kind: str) -> Results:
            if kind not in found:
                asked.write(f"{kind}\n")
                asked.flush()
                found[kind] = []
                for line in iter(answered.readline, ""):
                    result = json.loads(line)
                    if result.get("done") == kind:
                        return found[kind]
                    found[kind].append(result)
                pytest.fail((folder / "stderr").read_text()[-2000:])
            return found[kind]

        yield results
        asked.close()


def said(result: dict[str, Any]) -> str:
    return json.dumps({name: value if name != "message" else value[:300] for name, value in result.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_no_attack_is_survived_by_luck(attacked: Attacked, kind: str) -> None:
    """Nothing dies, waits for ever, takes all memory or fails in a way that it was not made to."""
    results = attacked(kind)
    bad = [said(each) for each in results if each["error"].startswith(("died", "unexpected"))]
    assert not bad, "\n".join(bad[:20])
    made = {name: sum(each["set"] == name for each in results) for name in ("files", "crafted", "fuzz")}
    # Each with every byte verified and without.
    assert made["files"] >= 2 * (30 if kind in ALIKE else 200)
    assert made["crafted"] >= 2 * (20 if kind in ALIKE else 90)
    assert made["fuzz"] == 2 * FUZZED


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_differs_from_its_checksum_is_named(attacked: Attacked, kind: str) -> None:
    unsigned = [each for each in attacked(kind) if not each["signed"] and each["set"] == "files"]
    names = {each["file"].split("/")[-1] for each in unsigned}
    of_all = {"CURRENT", "00000001.json", "segment.json", "gaussians.npy", "ids.arrow", "payload.arrow"}
    assert names >= {"vectors.faiss", *(() if kind in ALIKE else of_all)}
    for each in unsigned:
        if not each["error"] and not each["verify"] and each["file"].endswith(BELIEVED):
            # Believed, and a wrong answer therefore.
            continue
        if each["file"] == "CURRENT" and each["attack"] == "missing":
            assert each["error"] == "IndexNotFoundError", said(each)
            continue
        assert each["error"] == "CorruptIndexError", said(each)
        # Of CURRENT, a flipped bit can name another file.
        place = str(Path(each["path"]).parent) if each["file"] == "CURRENT" else each["path"]
        assert place in each["message"], said(each)


@pytest.mark.parametrize("kind", KINDS)
def test_what_checksums_do_not_tell_is_refused_by_name_or_does_no_harm(attacked: Attacked, kind: str) -> None:
    signed = [each for each in attacked(kind) if each["signed"]]
    refused = [each for each in signed if each["error"]]
    for each in refused:
        assert each["error"] in REFUSALS, said(each)
        assert each["path"].removesuffix(each["file"]) in each["message"], said(each)
    # Most of what is tried is noticed.
    assert len(refused) > 0.6 * len(signed)


def published(
    directory: IndexDirectory, twin: IndexDirectory, generation: int, name: str, data: bytes, signed: bool
) -> Path:
    """Makes the files of another index the live generation, of which one has that content, with the checksum of it or
    of what was there. None of them is one that a service has open already."""
    for folder in ("segments", "codebooks", "structures"):
        if (twin.path / folder).exists() and generation == 2:
            shutil.copytree(twin.path / folder, directory.path / folder, dirs_exist_ok=True)
    manifest = json.loads((twin.manifests / "00000001.json").read_bytes())
    manifest["generation"] = generation
    new = directory.manifests / f"0000000{generation}.json"
    new.write_text(json.dumps(manifest))
    path = directory.path / name
    path.unlink()
    path.write_bytes(data)
    directory.current_file.write_text(f"{new.name} {'0' * 64}\n")
    sign(directory.path, name if signed else f"manifests/{new.name}")
    return path


def answers(client: Client) -> Any:
    body = {"mean": [0.0] * 4, "variance": [1.0] * 4, "top_k": 3}
    response = client.post("/v1/search", body)
    assert response.status_code == 200
    assert client.get("/readyz").status_code == 200
    return response.json()["results"]


def last_error(client: Client) -> str:
    return str(client.get("/v1/index").json()["reload"]["last_error"] or "")


OF_ALL = ("vectors.faiss", "gaussians.npy", "ids.arrow", "payload.arrow", "segment.json")
OF_KINDS = [
    *(("flat", name) for name in OF_ALL),
    *(("fastscan", name) for name in ("vectors.faiss", "projected.npy", "codebooks/")),
    *((kind, name) for kind in ("ivf-fastscan", "hnsw") for name in ("vectors.faiss", "codebooks/", "structures/")),
    *((kind, name) for kind in ("faiss Flat", "faiss IVF4,SQ8") for name in ("vectors.faiss", "codebooks/")),
]


@pytest.mark.parametrize("signed", [False, True], ids=["with other checksums", "signed"])
@pytest.mark.parametrize(("kind", "name"), OF_KINDS)
def test_a_service_keeps_its_generation_where_a_new_one_is_not_what_it_should_be(
    make_index: MakeIndex, serve: Serve, kind: str, name: str, signed: bool
) -> None:
    texts = [f"text {row}" for row in range(DOCUMENTS)]
    directory, twin = (
        make_index(
            random_gaussians(DOCUMENTS, K, seed=seed),
            name=f"{seed}",
            segment_docs=DOCUMENTS // 2,
            text=texts,
            **KINDS[kind],
        )
        for seed in range(2)
    )
    client = serve(directory, reload_seconds=0.01)
    before, after = answers(client), answers(serve(twin))
    assert before != after
    (file,) = (each for each in files_of(twin.path) if name in each)
    content = (twin.path / file).read_bytes()
    half = len(content) // 2
    damaged = content[:half] if signed else content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    path = published(directory, twin, 2, file, damaged, signed)
    wait_until(lambda: str(path) in last_error(client))
    assert answers(client) == before
    published(directory, twin, 3, file, content, signed=True)
    wait_until(lambda: client.get("/v1/index").json()["generation"] == 3)
    assert answers(client) == after
    assert last_error(client) == ""


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"x" * 1000, b"00000009.json " + b"0" * 64 + b"\n", None])
def test_a_service_keeps_its_generation_whatever_current_becomes(
    make_index: MakeIndex, serve: Serve, content: bytes | None
) -> None:
    directory = make_index(random_gaussians(40, K))
    client = serve(directory, reload_seconds=0.01)
    before = answers(client)
    if content is None:
        directory.current_file.unlink()
        os.mkfifo(directory.current_file)
    else:
        directory.current_file.write_bytes(content)
    wait_until(lambda: str(directory.path) in last_error(client))
    assert answers(client) == before


@pytest.mark.parametrize("name", ["manifests", "segments", "staging"])
def test_a_build_follows_no_link_out_of_its_directory(tmp_path: Path, name: str) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(10, 2))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    directory = IndexDirectory(tmp_path / "index")
    directory.path.mkdir()
    (directory.path / name).symlink_to(elsewhere)
    with pytest.raises(CorruptIndexError, match=rf"{directory.path / name} is a symbolic link"):
        build_index([corpus], directory, BuildOptions())
    assert not list(elsewhere.iterdir())


def test_the_directory_itself_may_be_reached_through_a_link(make_index: MakeIndex, tmp_path: Path) -> None:
    directory = make_index(random_gaussians(10, 2))
    (tmp_path / "link").symlink_to(directory.path)
    assert len(LocalSearcher(IndexDirectory(tmp_path / "link"))) == 10


def test_what_is_read_is_what_was_hashed(tmp_path: Path) -> None:
    """A file that is swapped for another once it has been opened, or while it is read, is the one that was opened."""
    path, data = tmp_path / "file", bytes(range(256)) * 4096
    path.write_bytes(data)
    file = IndexFile.of(path)
    with file.open() as opened:
        first = opened.take(1000)
        path.unlink()
        path.write_bytes(b"\0" * len(data))
        assert first + opened.take(len(data)) == data
        opened.finish()
    with pytest.raises(CorruptIndexError, match=f"{path} does not match its checksum"):
        file.verify()
    path.write_bytes(data)
    with file.open() as opened:
        opened.take(1000)
        os.truncate(path, 5000)
        with pytest.raises(CorruptIndexError, match=f"{path} was cut short while it was read"):
            opened.verify()


def test_a_mapped_file_is_verified_and_mapped_through_one_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what is right")
    with IndexFile.of(path).open() as opened:
        path.unlink()
        path.write_bytes(b"what is wrong")
        opened.verify()
        assert bytes(opened.map()) == b"what is right"


def test_names_with_a_line_break_at_the_end_are_other_names(make_index: MakeIndex) -> None:
    """Python's `$` would let it pass."""
    directory = make_index(random_gaussians(10, 2))
    path = directory.manifests / "00000001.json"
    manifest = json.loads(path.read_bytes())
    segment = manifest["segments"][0]
    (directory.segments / segment["id"]).rename(directory.segments / f"{segment['id']}\n")
    segment["id"] += "\n"
    path.write_text(json.dumps(manifest))
    directory.current_file.write_text(f"{path.name} {checksum(path.read_bytes())}\n")
    with pytest.raises(CorruptIndexError, match=r"segments\.0\.id"):
        LocalSearcher(directory)


def test_a_search_of_which_every_query_finds_too_little_is_answered_exactly(make_index: MakeIndex) -> None:
    """In several segments, too, where none of its candidates are left to be scored."""
    directory = make_index(random_gaussians(2000, 12, seed=4), kind="ivf-fastscan", segment_docs=700)
    searcher, queries = LocalSearcher(directory), random_gaussians(3, 12, seed=5)
    few, exact = searcher.search(queries, 500, nprobe=1), searcher.search(queries, 500, exact=True)
    assert [ranking.ids for ranking in few] == [ranking.ids for ranking in exact]
