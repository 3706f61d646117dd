"""The files of a segment: what they hold, and that whatever is done to one of them is noticed and named."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch

from index import Encoding, IndexDirectory, LocalSearcher, encode_documents
from index.durable import checksum, measure
from index.errors import BuildError, CorruptIndexError
from index.generation_files import open_segments
from index.segment_writing import RESERVED_BYTES, GaussiansWriter
from index.segments import Segment, find_segment
from index.untrusted import IndexFile
from index.vectors import FlatVectors, write_vectors
from tests.conftest import MakeIndex, random_gaussians

FILES = ["vectors.faiss", "gaussians.npy", "ids.arrow", "payload.arrow", "segment.json"]
N, K = 12, 3


@pytest.fixture
def directory(make_index: MakeIndex) -> IndexDirectory:
    """Two segments of the same size, file by file."""
    return make_index(
        random_gaussians(N, K),
        [f"id-{row:02}" for row in range(N)],
        segment_docs=N // 2,
        text=[f"é{row:02}" for row in range(N)],
    )


def folders(directory: IndexDirectory) -> list[Path]:
    return [directory.segments / entry.id for entry in directory.manifest().segments]


def forge(directory: IndexDirectory, folder: Path, change: Callable[[Path], Any]) -> None:
    """Changes a segment and every checksum and size above the change, as only a malicious or broken writer would."""
    change(folder)
    segment = json.loads((folder / "segment.json").read_bytes())
    for name in segment["files"]:
        data = (folder / name).read_bytes()
        segment["files"][name] = {"bytes": len(data), "blake3": checksum(data)}
    data = json.dumps(segment).encode()
    (folder / "segment.json").write_bytes(data)
    path = directory.manifests / "00000001.json"
    manifest = json.loads(path.read_bytes())
    for entry in manifest["segments"]:
        if entry["id"] == folder.name:
            entry["blake3"] = checksum(data)
            entry["bytes"] = sum(file["bytes"] for file in segment["files"].values())
    path.write_text(json.dumps(manifest))
    directory.current_file.write_text(f"{path.name} {checksum(path.read_bytes())}\n")


def assert_refused(directory: IndexDirectory, path: Path) -> None:
    for read in (directory.verify, lambda: LocalSearcher(directory)):
        with pytest.raises(CorruptIndexError) as caught:
            read()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_differs_in_any_way_is_named(directory: IndexDirectory, name: str, which: int) -> None:
    path = folders(directory)[which] / name
    good = path.read_bytes()
    half = len(good) // 2
    variants = [good[:-1], good[:half], b"", good + b"\0", good * 2]
    for offset in sorted({0, 7, half // 2, half, half + half // 2, len(good) - 1}):
        flipped = bytearray(good)
        flipped[offset] ^= 1 << (offset % 8)
        variants.append(bytes(flipped))
    for bad in variants:
        path.write_bytes(bad)
        assert_refused(directory, path)
    path.unlink()
    assert_refused(directory, path)
    path.write_bytes(good)
    assert directory.verify().documents == N


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_segment_is_no_substitute(directory: IndexDirectory, name: str) -> None:
    first, second = (folder / name for folder in folders(directory))
    theirs = second.read_bytes()
    assert len(theirs) == len(first.read_bytes())
    second.write_bytes(first.read_bytes())
    first.write_bytes(theirs)
    assert_refused(directory, first)


def test_segments_that_changed_places_are_refused(directory: IndexDirectory) -> None:
    first, second = folders(directory)
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    assert_refused(directory, first / "segment.json")
    shutil.rmtree(first)
    assert_refused(directory, first / "segment.json")


@pytest.mark.parametrize("name", FILES[:-1])
def test_sizes_are_checked_even_where_checksums_are_not(directory: IndexDirectory, name: str) -> None:
    path = folders(directory)[1] / name
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CorruptIndexError, match=rf"{path} has \d+ bytes, not \d+"):
        LocalSearcher(directory, verify=False)


def save(array: Any, *, allow_pickle: bool = False) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "gaussians.npy", array, allow_pickle=allow_pickle)


def write_table(name: str, **columns: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        table = pa.table(columns)
        with pa.ipc.new_file(str(folder / name), table.schema) as writer:
            writer.write_table(table)

    return write


def write_index(index: Any) -> Callable[[Path], None]:
    return lambda folder: faiss.write_index(index, str(folder / "vectors.faiss"))


IDS = [f"id-{row:02}" for row in range(N // 2)]
WIDTH = Encoding.SIMPLIFIED.width(K)


@pytest.mark.parametrize(("name", "change", "said"), [
    ("gaussians.npy", save(np.array([{}] * 6), allow_pickle=True), r"holds \|O \(6,\)"),
    ("gaussians.npy", save(np.ones((6, 6))), "holds <f8"),
    ("gaussians.npy", save(np.ones((6, 5), np.float32)), r"\(6, 5\), not <f4 \(6, 6\)"),
    ("gaussians.npy", save(np.ones((7, 6), np.float32)), r"\(7, 6\)"),
    ("gaussians.npy", lambda folder: (folder / "gaussians.npy").write_bytes(b"PK"), "is not an array"),
    ("ids.arrow", write_table("ids.arrow", id=IDS), "columns"),
    ("ids.arrow", write_table("ids.arrow", id=IDS[:-1], order=np.arange(5, dtype=np.uint32)), "5 rows, not 6"),
    ("ids.arrow", lambda folder: (folder / "ids.arrow").write_bytes(b"ARROW1"), "is not an Arrow file"),
    ("payload.arrow", write_table("payload.arrow", text=["x"] * 7), "7 rows, not 6"),
    ("vectors.faiss", lambda folder: (folder / "vectors.faiss").write_bytes(b"IxFI"), "is not a FAISS index"),
    ("vectors.faiss", write_index(faiss.IndexFlatL2(WIDTH)), "not a flat inner-product index"),
    ("vectors.faiss", write_index(faiss.IndexHNSWFlat(WIDTH, 4)), "not a flat inner-product index"),
    ("vectors.faiss", write_index(faiss.IndexFlatIP(WIDTH)), f"holds 0 x {WIDTH} numbers, not 6 x {WIDTH}"),
    ("vectors.faiss", write_index(faiss.IndexFlatIP(WIDTH + 1)), f"holds 0 x {WIDTH + 1} numbers"),
])  # fmt: skip
def test_files_with_good_checksums_must_still_fit_their_neighbours(
    directory: IndexDirectory, name: str, change: Callable[[Path], Any], said: str
) -> None:
    folder = folders(directory)[0]
    forge(directory, folder, change)
    with pytest.raises(CorruptIndexError, match=rf"{folder / name}.*{said}"):
        LocalSearcher(directory)


def test_a_segment_lists_no_file_but_its_own(directory: IndexDirectory) -> None:
    folder = folders(directory)[0]

    def add(folder: Path) -> None:
        segment = json.loads((folder / "segment.json").read_bytes())
        segment["files"]["../../CURRENT"] = segment["files"]["ids.arrow"]
        (folder / "segment.json").write_text(json.dumps(segment))

    forge(directory, folder, add)
    with pytest.raises(CorruptIndexError, match=rf"{folder / 'segment.json'}.*files must be"):
        directory.verify()


def opened(directory: IndexDirectory) -> list[Segment]:
    return open_segments(directory, directory.manifest())


@pytest.mark.parametrize("encoding", Encoding)
def test_a_segment_holds_what_the_format_says(make_index: MakeIndex, encoding: Encoding) -> None:
    documents = random_gaussians(7, K)
    ids = ["b", "a", "é", "Z", "c", "\U0001f600", "\uffff"]
    directory = make_index(documents, ids, encoding=encoding, year=list(range(7)))
    (segment,) = opened(directory)
    both = torch.cat([documents.means, documents.variances], dim=1).numpy()
    np.testing.assert_array_equal(np.load(segment.folder / "gaussians.npy", allow_pickle=False), both)
    vectors = faiss.read_index(str(segment.vectors_file))
    expected = encode_documents(documents, encoding, directory.manifest().standardisation.restore())
    np.testing.assert_array_equal(vectors.reconstruct_n(0, 7), expected)
    assert segment.manifest.max_norm == pytest.approx(float(expected.double().norm(dim=1).max()))
    assert segment.ids.to_pylist() == ids
    assert [ids[row] for row in segment.order.tolist()] == sorted(ids)
    assert segment.payload is not None
    assert segment.payload["year"].to_pylist() == list(range(7))
    assert sorted(path.name for path in segment.folder.iterdir()) == sorted(FILES)


def test_a_completed_segment_is_found_again_only_while_it_is_whole(directory: IndexDirectory) -> None:
    folder, other = folders(directory)
    assert find_segment(folder, N // 2, None) == directory.manifest().segments[0]
    assert find_segment(folder, N, None) is None
    assert find_segment(folder, N // 2, "0" * 64) is None
    assert find_segment(folder.with_name("nothing"), N // 2, None) is None
    shutil.copy(folder / "segment.json", other / "segment.json")
    assert find_segment(other, N // 2, None) is None
    (folder / "vectors.faiss").write_bytes(b"")
    assert find_segment(folder, N // 2, None) is None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_searchers_that_are_gone_or_never_came_to_be_leave_no_file_open(directory: IndexDirectory) -> None:
    def count() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), Path("/proc/self/maps").read_text().count(
            str(directory.path)
        )

    before = count()
    searcher = LocalSearcher(directory)
    assert count() > before
    del searcher
    assert count() == before
    path = folders(directory)[1] / "gaussians.npy"
    path.write_bytes(path.read_bytes()[:-1])
    for verify in (True, False):
        with pytest.raises(CorruptIndexError):
            LocalSearcher(directory, verify=verify)
    assert count() == before


@pytest.mark.parametrize("documents", [1, 2, 300])
@pytest.mark.parametrize("width", [3, 385])
def test_vectors_are_written_as_faiss_writes_them(tmp_path: Path, documents: int, width: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((documents, width), dtype=np.float32)
    path = tmp_path / "vectors.faiss"
    entry = write_vectors(path, documents, width, (vectors[row : row + 100] for row in range(0, documents, 100)))
    by_faiss = faiss.IndexFlatIP(width)
    by_faiss.add(vectors)
    assert path.read_bytes() == faiss.serialize_index(by_faiss).tobytes()
    assert entry == measure(path)
    assert len(FlatVectors.read(IndexFile(path), documents=documents, width=width)) == documents


def test_another_form_of_faiss_files_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serialize = faiss.serialize_index
    monkeypatch.setattr(faiss, "serialize_index", lambda index: np.append(serialize(index), np.uint8(index.ntotal)))
    with pytest.raises(BuildError, match=f"faiss {faiss.__version__} writes IndexFlatIP in a form"):
        write_vectors(tmp_path / "vectors.faiss", 1, 3, [np.zeros((1, 3), dtype=np.float32)])


@pytest.mark.parametrize("expected", [1, 299, 300, 301, 10_000_000])
def test_gaussians_are_as_many_as_were_written_whatever_was_expected(tmp_path: Path, expected: int) -> None:
    path, gaussians = tmp_path / "gaussians.npy", random_gaussians(300, 16)
    writer = GaussiansWriter(path, expected, 16)
    for part in gaussians.chunks(128):
        writer.write(part)
        assert path.stat().st_size <= 300 * 16 * 8 + RESERVED_BYTES + 128
    entry = writer.finish()
    assert np.array_equal(np.load(path), np.hstack([gaussians.means.numpy(), gaussians.variances.numpy()]))
    assert path.stat().st_size == 128 + 300 * 16 * 8
    assert entry == measure(path)
