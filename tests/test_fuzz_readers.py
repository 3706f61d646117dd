"""What reads bytes of an index that anybody may have written: it gives what is in them or says that they are wrong.

Each test makes up bytes that are nearly right, and no error but those documented may come out.
"""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index import BuildOptions, IndexDirectory, build_index
from index.array_files import map_array, write_array
from index.arrow_files import map_table
from index.codebook import Codebook
from index.codes import read_codes, write_codes
from index.durable import checksum
from index.errors import CorruptIndexError, GaussearchError
from index.factory import FactoryIndex, train_factory
from index.factory_codebook import FactoryCodebook
from index.faiss_forms import require_known_index
from index.graph import GraphBuilder
from index.graph_file import require_links
from index.lists import Lists
from index.manifest import Manifest
from index.memory import require_memory
from index.projector import Projector
from index.scalar_codebook import ScalarCodebook
from index.scalar_codes import find_ranges, read_scalar_codes, scalar_codes, write_scalar_codes
from index.segment_writing import write_ids, write_payload
from index.segments import open_segment
from index.untrusted import IndexFile
from index.vectors import FlatVectors, resolve_device, write_vectors
from tests.conftest import random_gaussians, write_corpus
from tests.hostile import DOCUMENTS, KINDS, K

fuzzed = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

RNG = np.random.default_rng(7)
POINTS = RNG.standard_normal((40, 16)).astype(np.float32)
NUMBERS = [0, 1, 2, 39, 40, 41, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
PIECES = st.one_of(
    st.binary(min_size=1, max_size=8), st.sampled_from([number.to_bytes(8, "little") for number in NUMBERS])
)


@st.composite
def nearly(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes like these: some in place of others, some missing, or more."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        # Where a file says what is in it more often than elsewhere.
        first = draw(st.integers(0, min(160, len(data) - 1)) | st.integers(0, len(data) - 1))
        piece = draw(PIECES)
        changed[first : first + len(piece)] = piece
    if draw(st.integers(0, 3)) == 0:
        del changed[draw(st.integers(0, len(changed))) :]
    return bytes(changed) + draw(st.sampled_from([b"", b"", b"", b"\0", b"\0" * 8]))


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([*NUMBERS, -1, 10**30, 10**400, 1e308, -1e308, 1e-308, float("nan"), float("inf")])
    | st.floats()
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def nearly_said(draw: st.DrawFn, said: Any) -> Any:
    """A JSON value like this one, in which a few places have another, or none."""
    changed = json.loads(json.dumps(said))
    for _ in range(draw(st.integers(1, 3))):
        inside = changed
        while True:
            keys = sorted(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inside[key], dict | list) and inside[key] and draw(st.integers(0, 3)):
                inside = inside[key]
                continue
            if draw(st.integers(0, 5)) == 0:
                del inside[key]
            else:
                inside[key] = draw(JSON)
            break
    return changed


@pytest.fixture(scope="module", params=["flat", "fastscan", "ivf-fastscan", "hnsw", "faiss IVF4,SQ8"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> IndexDirectory:
    """A small index, whose manifests are written over."""
    folder = tmp_path_factory.mktemp("built")
    corpus = write_corpus(folder / "corpus.parquet", random_gaussians(DOCUMENTS, K))
    directory = IndexDirectory(folder / "index")
    build_index([corpus], directory, BuildOptions(segment_docs=DOCUMENTS // 2, device="cpu", **KINDS[request.param]))
    return directory


@pytest.fixture(scope="module")
def said(built: IndexDirectory) -> Any:
    """What its manifest says."""
    return json.loads((built.manifests / "00000001.json").read_bytes())


@fuzzed
@given(st.data())
def test_current(built: IndexDirectory, said: Any, data: st.DataObject) -> None:
    manifest = json.dumps(said).encode()
    (built.manifests / "00000001.json").write_bytes(manifest)
    right = f"00000001.json {checksum(manifest)}\n".encode()
    content = data.draw(nearly(right) | st.binary(max_size=300))
    built.current_file.write_bytes(content)
    if content == right:
        assert built.manifest().generation == 1
        return
    # Another way of naming a generation is none.
    with pytest.raises(CorruptIndexError, match=str(built.path)):
        built.manifest()


def publish(directory: IndexDirectory, content: bytes) -> None:
    (directory.manifests / "00000001.json").write_bytes(content)
    directory.current_file.write_text(f"00000001.json {checksum(content)}\n")


def use(directory: IndexDirectory) -> None:
    """What is computed from a manifest before anything else is read."""
    manifest = directory.manifest()
    require_memory(manifest, directory, resolve_device("cpu"))
    manifest.standardisation.restore()
    for top_k in (1, 7, 10**4, 10**9):
        if manifest.codes is not None:
            assert manifest.codes.candidates_for(top_k) >= top_k
            nprobe, lists = manifest.codes.nprobe_for(top_k), manifest.codes.list_count
            assert nprobe is None or (lists is not None and 1 <= nprobe <= lists)


@fuzzed
@given(st.data())
def test_manifests(built: IndexDirectory, said: Any, data: st.DataObject) -> None:
    publish(built, json.dumps(data.draw(nearly_said(said))).encode())
    with contextlib.suppress(GaussearchError):
        use(built)


@fuzzed
@given(st.data())
def test_the_text_of_manifests(built: IndexDirectory, said: Any, data: st.DataObject) -> None:
    publish(built, data.draw(nearly(json.dumps(said).encode())))
    with contextlib.suppress(GaussearchError):
        use(built)


@fuzzed
@given(st.data())
def test_segment_manifests(built: IndexDirectory, said: Any, data: st.DataObject) -> None:
    entry = Manifest.model_validate_json(json.dumps(said)).segments[0]
    path = built.segments / entry.id / "segment.json"
    original = path.read_bytes()
    try:
        content = json.dumps(data.draw(nearly_said(json.loads(original)))).encode()
        path.write_bytes(content)
        with contextlib.suppress(CorruptIndexError):
            open_segment(path.parent, entry.model_copy(update={"blake3": checksum(content)}), verify=False)
    finally:
        path.write_bytes(original)


def projector() -> dict[str, Any]:
    center, documents = RNG.standard_normal(9).astype("f4"), RNG.standard_normal((9, 16)).astype("f4")
    return {"center": center, "documents": documents, "queries": documents.astype("f8")}


RANGES = find_ranges(POINTS)
CENTROIDS = RNG.standard_normal((6, 16, 4)).astype(np.float32)
CODEBOOKS: dict[str, tuple[Any, bytes]] = {
    "projector": (Projector, Projector(**projector()).to_bytes()),
    "codes": (
        Codebook,
        Codebook(**projector(), ranges=RANGES, places=np.arange(24) % 17, double=2, centroids=CENTROIDS).to_bytes(),
    ),
    "projected vectors": (ScalarCodebook, ScalarCodebook(**projector(), ranges=RANGES).to_bytes()),
    "FAISS": (
        FactoryCodebook,
        FactoryCodebook(**projector(), trained=train_factory("IVF2,SQ8", np.tile(POINTS, (5, 1)))).to_bytes(),
    ),
    "lists": (Lists, Lists(RNG.standard_normal((3, 9)).astype("f4"), np.arange(40, dtype="i4") % 3).to_bytes()),
}


@pytest.mark.parametrize("name", CODEBOOKS)
@fuzzed
@given(st.data())
def test_codebooks_and_lists(name: str, data: st.DataObject) -> None:
    kind, content = CODEBOOKS[name]
    assert kind.from_bytes(content).to_bytes() == content
    with contextlib.suppress(ValueError):
        kind.from_bytes(data.draw(nearly(content)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


IDS = pa.array([f"id-{row:02}" for row in range(40)])
PAYLOAD = pa.table({"text": ["é" * row for row in range(40)], "n": [{"a": [row]} for row in range(40)]})
GAUSSIANS = random_gaussians(40, 4)
SCALAR = scalar_codes(POINTS, RANGES)
DIGITS = RNG.integers(0, 256, (40, 3)).astype(np.uint8)


def factory_file(factory: str, path: Path) -> None:
    FactoryIndex.of(train_factory(factory, np.tile(POINTS, (8, 1))), POINTS).write(path)


def links_file(path: Path) -> None:
    builder = GraphBuilder(POINTS, 4, 16)
    builder.add(POINTS)
    builder.write(path)


def checked_links(file: IndexFile) -> None:
    with contextlib.suppress(ValueError):
        require_links(file.array(), 40)


def checked_factory(file: IndexFile) -> None:
    with contextlib.suppress(ValueError):
        require_known_index(file.array(), 40, 16)


Writer = Callable[[Path], object]
Reader = Callable[[IndexFile], object]
FACTORIES = ("Flat", "SQ8", "PQ8x4", "PQ8x4fs", "IVF2,SQ8", "IVF2,PQ8x4", "IVF2,PQ8x4fs", "PCA8,IVF2,Flat", "Pad32,SQ6")
FILES: dict[str, tuple[Writer, Reader]] = {
    "ids.arrow": (lambda path: write_ids(path, IDS), lambda file: map_table(file, 40, verify=True)),
    "payload.arrow": (
        lambda path: write_payload(path, PAYLOAD),
        lambda file: map_table(file, 40, verify=True).take([0, 39]).to_pylist(),
    ),
    "gaussians.npy": (
        lambda path: write_array(path, GAUSSIANS.means.numpy()),
        lambda file: map_array(file, np.dtype("<f4"), 40, 4),
    ),
    "projected.npy": (lambda path: write_array(path, SCALAR), lambda file: map_array(file, np.dtype("u1"), 40, 16)),
    "vectors": (
        lambda path: write_vectors(path, 40, 16, [POINTS]),
        lambda file: FlatVectors.read(file, documents=40, width=16),
    ),
    "digits": (lambda path: write_codes(path, DIGITS, CENTROIDS), lambda file: read_codes(file, 40, CENTROIDS)),
    "scalar codes": (
        lambda path: write_scalar_codes(path, SCALAR, RANGES),
        lambda file: read_scalar_codes(file, 40, RANGES),
    ),
    "links": (links_file, checked_links),
    **{factory: (functools.partial(factory_file, factory), checked_factory) for factory in FACTORIES},
}


@pytest.mark.parametrize("name", FILES)
@fuzzed
@given(st.data())
def test_files(folder: Path, name: str, data: st.DataObject) -> None:
    """Of what FAISS reads, only that which is asked before: tests.attacking has FAISS read it, where it may die."""
    write, read = FILES[name]
    path = folder / name
    if not path.exists():
        write(path)
        read(IndexFile.of(path))
    content = path.read_bytes()
    changed = folder / "changed"
    changed.write_bytes(data.draw(nearly(content)))
    with contextlib.suppress(CorruptIndexError):
        read(IndexFile(changed))


def test_a_type_that_is_no_text_is_refused(folder: Path) -> None:
    """Found by test_files."""
    path = folder / "typed.npy"
    np.save(path, np.zeros((40, 4), "<f4"))
    path.write_bytes(path.read_bytes().replace(b"'<f4'", b"'\x80f4'"))
    with pytest.raises(CorruptIndexError, match="is not an array"):
        map_array(IndexFile(path), np.dtype("<f4"), 40, 4)


def test_all_that_faiss_writes_is_known(folder: Path) -> None:
    """Or else `checked_factory` would pass for refusing everything."""
    for factory in (*FACTORIES, "IVF2,Flat", "RR,SQfp16", "OPQ4,PQ4x4", "HR,SQ4", "SQbf16"):
        path = folder / f"{factory}.known"
        factory_file(factory, path)
        require_known_index(IndexFile(path).array(), 40, 16)
        assert len(FactoryIndex.read(IndexFile.of(path), 40, 16)) == 40
    links_file(folder / "links.known")
    require_links(IndexFile(folder / "links.known").array(), 40)
