"""Generations of an index directory: published in one step, kept while they may be needed, refused where damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index import BuildOptions, Encoding, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.durable import checksum, write_atomically
from index.errors import CorruptIndexError, IndexNotFoundError, UnsupportedFormatError
from tests.conftest import MakeIndex, random_gaussians, write_corpus

Forge = Callable[..., Path]


@pytest.fixture
def directory(make_index: MakeIndex) -> IndexDirectory:
    return make_index(random_gaussians(10, 3), segment_docs=5, text=[f"text {row}" for row in range(10)])


def write_manifest(directory: IndexDirectory, data: bytes, name: str = "00000001.json") -> Path:
    """Replaces a manifest and makes CURRENT name it with the right checksum, so that its content is what is judged."""
    path = directory.manifests / name
    path.write_bytes(data)
    directory.current_file.write_text(f"{name} {checksum(data)}\n")
    return path


def changed(directory: IndexDirectory, change: Callable[[dict[str, Any]], object]) -> bytes:
    manifest = json.loads((directory.manifests / "00000001.json").read_bytes())
    change(manifest)
    return json.dumps(manifest).encode()


@pytest.mark.parametrize("present", [[], ["."], ["manifests", "segments"]])
def test_a_directory_without_an_index_says_so(tmp_path: Path, present: list[str]) -> None:
    directory = IndexDirectory(tmp_path / "index")
    for name in present:
        (directory.path / name).mkdir(parents=True, exist_ok=True)
    for read in (directory.current_token, directory.manifest, directory.verify, lambda: LocalSearcher(directory)):
        with pytest.raises(IndexNotFoundError, match=rf"no index in {directory.path}: .*CURRENT does not exist"):
            read()
    assert directory.live_generation() is None
    assert (tmp_path / "index").exists() == bool(present)


def test_a_file_in_place_of_the_directory_holds_no_index(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("no directory")
    with pytest.raises(IndexNotFoundError):
        IndexDirectory(tmp_path / "index").manifest()


@pytest.mark.parametrize("content", [
    b"", b"\n", b"00000001.json\n", b"../../00000001.json " + b"0" * 64 + b"\n", b"\xff\xfe" * 40,
    b"1.json " + b"0" * 64,
])  # fmt: skip
def test_a_current_file_that_names_nothing_is_corrupt(directory: IndexDirectory, content: bytes) -> None:
    directory.current_file.write_bytes(content)
    for read in (directory.manifest, directory.verify, lambda: LocalSearcher(directory)):
        with pytest.raises(CorruptIndexError, match=rf"{directory.current_file} does not name"):
            read()
    assert directory.live_generation() is None


def test_a_manifest_that_is_missing_or_another_is_corrupt(directory: IndexDirectory) -> None:
    path = directory.manifests / "00000001.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptIndexError, match=rf"{path} does not match the checksum in {directory.current_file}"):
        directory.manifest()
    path.unlink()
    with pytest.raises(CorruptIndexError, match=f"{path} is missing"):
        directory.manifest()


@pytest.mark.parametrize(("field", "value", "said"), [
    ("k", 4, "standardisation must have 4 shifts"), ("k", "3", "k: "), ("k", 0, "k: "), ("documents", 11, "sum"),
    ("kind", "graph", "kind"), ("encoding", "simple", "encoding"), ("generation", 0, "generation"),
    ("deletes", ["d1"], "deletes"), ("segments", [], "segments"), ("surprise", 1, "surprise"),
    ("source", None, "source"),
])  # fmt: skip
def test_a_manifest_that_says_the_impossible_is_refused_by_its_field(
    directory: IndexDirectory, field: str, value: object, said: str
) -> None:
    path = write_manifest(directory, changed(directory, lambda manifest: manifest.update({field: value})))
    with pytest.raises(CorruptIndexError) as caught:
        directory.verify()
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_manifest_that_is_no_object_is_refused(directory: IndexDirectory, data: bytes) -> None:
    path = write_manifest(directory, data)
    with pytest.raises(CorruptIndexError, match=str(path)):
        directory.manifest()


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_version_is_refused_with_what_to_do(directory: IndexDirectory, version: object) -> None:
    path = write_manifest(directory, changed(directory, lambda manifest: manifest.update(format_version=version)))
    with pytest.raises(UnsupportedFormatError, match=rf"{path} has format version {version!r}; .* reads version 2"):
        directory.verify()


@pytest.mark.parametrize(
    "name", ["../x", "/etc", "..", "", "0" * 12 + "-00000001-00000/..", "ABCDEFABCDEF-00000001-00000"]
)
def test_a_segment_cannot_lie_outside_the_index(directory: IndexDirectory, name: str) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        manifest["segments"][1]["id"] = name

    path = write_manifest(directory, changed(directory, rename))
    with pytest.raises(CorruptIndexError, match=rf"{path}: segments\.1\.id"):
        directory.verify()


def test_a_segment_listed_twice_is_refused(directory: IndexDirectory) -> None:
    def repeat(manifest: dict[str, Any]) -> None:
        manifest["segments"][1] = manifest["segments"][0]

    write_manifest(directory, changed(directory, repeat))
    with pytest.raises(CorruptIndexError, match="a segment is listed twice"):
        directory.verify()


def test_segments_must_be_those_that_the_manifest_counts(directory: IndexDirectory) -> None:
    def shift(manifest: dict[str, Any]) -> None:
        manifest["segments"][0]["documents"] += 1
        manifest["segments"][1]["documents"] -= 1

    write_manifest(directory, changed(directory, shift))
    segment = directory.segments / directory.manifest().segments[0].id / "segment.json"
    with pytest.raises(CorruptIndexError, match=f"{segment} describes another segment"):
        directory.verify()


@pytest.mark.parametrize("change", [{"k": 2}, {"encoding": "full"}])
def test_segments_must_be_of_the_manifests_k_and_encoding(directory: IndexDirectory, change: dict[str, Any]) -> None:
    def alter(manifest: dict[str, Any]) -> None:
        manifest |= change
        for numbers in (manifest["standardisation"]["shift"], manifest["standardisation"]["scale"]):
            del numbers[manifest["k"] :]

    write_manifest(directory, changed(directory, alter))
    for read in (directory.verify, lambda: LocalSearcher(directory, verify=False)):
        with pytest.raises(CorruptIndexError, match="holds another k or encoding"):
            read()


def generations(directory: IndexDirectory) -> list[str]:
    return sorted(path.name for path in directory.manifests.iterdir())


def segment_generations(directory: IndexDirectory) -> set[int]:
    return {int(path.name.split("-")[1]) for path in directory.segments.iterdir()}


def test_the_live_generation_and_the_one_before_it_are_kept(make_index: MakeIndex) -> None:
    for number in range(1, 5):
        directory = make_index(random_gaussians(6, 2, seed=number), segment_docs=4)
        assert directory.live_generation() == number
        assert generations(directory) == [f"{kept:08}.json" for kept in range(max(1, number - 1), number + 1)]
        assert segment_generations(directory) == set(range(max(1, number - 1), number + 1))
        assert directory.verify().generation == number


def test_a_manifest_that_was_never_made_live_costs_no_live_generation_its_place(
    make_index: MakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_before_current(path: Path, data: bytes) -> None:
        if path.name == "CURRENT":
            raise KeyboardInterrupt
        write_atomically(path, data)

    directory = make_index(random_gaussians(6, 2))
    for seed in (1, 2, 3):
        corpus = write_corpus(tmp_path / f"{seed}.parquet", random_gaussians(6, 2, seed=seed))
        with monkeypatch.context() as patch:
            patch.setattr("index.storage.write_atomically", die_before_current)
            with pytest.raises(KeyboardInterrupt):
                build_index([corpus], directory, BuildOptions(restart=True))
        assert directory.verify().generation == 1
    summary = build_index([tmp_path / "index.parquet"], directory)
    assert summary.up_to_date
    build_index([corpus], directory, BuildOptions(restart=True))
    assert len(generations(directory)) == 2
    assert generations(directory)[0] == "00000001.json"
    assert directory.verify().documents == 6


@pytest.mark.parametrize("damage", ["garbage", "newer"])
def test_nothing_that_a_manifest_of_another_release_may_name_is_removed_before_it_is_replaced(
    directory: IndexDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    data = b"{}" if damage == "garbage" else changed(directory, lambda manifest: manifest.update(format_version=3))
    write_manifest(directory, data)
    segments = sorted(directory.segments.iterdir())
    corpus = write_corpus(tmp_path / "other.parquet", random_gaussians(6, 2))
    with monkeypatch.context() as patch:
        patch.setattr(IndexDirectory, "publish", lambda *_: shutil.disk_usage("/no such place"))
        with pytest.raises(FileNotFoundError):
            build_index([corpus], directory)
    assert set(segments) < set(directory.segments.iterdir())
    assert build_index([corpus], directory).manifest.generation == 2
    assert directory.verify().documents == 6


def test_names_and_folders_are_found_whatever_the_path_looks_like(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a [1]*.parquet", random_gaussians(4, 2))
    path = tmp_path / "ün index [*]" / "nested"
    build_index([corpus], IndexDirectory(path), BuildOptions(encoding=Encoding.FULL))
    searcher = LocalSearcher(IndexDirectory(str(path)))
    assert searcher.name == "nested"
    assert searcher.search(Gaussians.from_arrays([[0.0, 0.0]], [[1.0, 1.0]]), 4)[0].ids


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(OSError, match="no"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / ".file.tmp").write_bytes(b"what a killed process left")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
