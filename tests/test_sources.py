"""Corpora: every format gives the same rows, and every defect names its place."""

import contextlib
import gzip
import json
import math
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from index.errors import InvalidOptionError, SourceError
from index.formats import json_lines
from index.formats import lines as lines_module
from index.sources import Columns, Corpus, RejectedRows, SourceBatch, VarianceAs, place

N, K, BATCH = 10, 3, 4
IDS = [f"déjà-{row}" for row in range(N)]
MEANS = np.random.default_rng(1).normal(size=(N, K)).astype(np.float32)
VARIANCES = np.random.default_rng(2).uniform(0.1, 2, size=(N, K)).astype(np.float32)
PAYLOAD = {
    "year": np.arange(1990, 1990 + N),
    "weight": np.linspace(0, 1, N),
    "kept": np.arange(N) % 2 == 0,
    "text": np.array([f"définition {row}" for row in range(N)]),
}
TABLE = pa.table(
    {
        "id": IDS,
        "mean": pa.FixedSizeListArray.from_arrays(pa.array(MEANS.ravel()), K),
        "variance": pa.array(list(VARIANCES), pa.list_(pa.float32())),
        **{name: pa.array(values) for name, values in PAYLOAD.items()},
    }
)
ALL, NUMBERS, NONE = tuple(PAYLOAD), ("kept", "weight", "year"), ()

Writer = Callable[[Path], None]


def write_parquet(path: Path) -> None:
    pq.write_table(TABLE, path, row_group_size=3)


def write_ipc(path: Path, *, stream: bool = False, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), TABLE.schema, options=options) as writer:
        writer.write_table(TABLE, max_chunksize=6)


def write_npz(path: Path, save: Callable[..., None] = np.savez) -> None:
    save(path, id=np.array(IDS), mean=MEANS, variance=VARIANCES, **PAYLOAD)


def write_npz_bytes(path: Path) -> None:
    ids = np.array([name.encode() for name in IDS])
    np.savez(path, id=ids, mean=MEANS.astype(">f8"), variance=VARIANCES, **PAYLOAD)


def write_safetensors(path: Path) -> None:
    ids = [name.encode() for name in IDS]
    width = max(map(len, ids)) + 2
    text = np.frombuffer(b"".join(name.ljust(width, b"\0") for name in ids), np.uint8).reshape(N, width)
    arrays = {"id": text.copy(), "mean": MEANS, "variance": VARIANCES, **{name: PAYLOAD[name] for name in NUMBERS}}
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def json_lines_bytes() -> bytes:
    rows = zip(IDS, MEANS.tolist(), VARIANCES.tolist(), *(values.tolist() for values in PAYLOAD.values()), strict=True)
    lines = [orjson.dumps(dict(zip(TABLE.column_names, row, strict=True))) for row in rows]
    # Blank lines are no records; the last line has no end.
    return b"\xef\xbb\xbf" + b"\n \r\n".join(lines)


def write_plain(path: Path) -> None:
    path.write_bytes(json_lines_bytes())


def write_zstd(path: Path) -> None:
    data, compress = json_lines_bytes(), zstandard.ZstdCompressor().compress
    path.write_bytes(compress(data[:500]) + compress(b"") + compress(data[500:]))


def write_gzip(path: Path) -> None:
    data = json_lines_bytes()
    path.write_bytes(gzip.compress(data[:500]) + gzip.compress(data[500:]))


def write_pickle(path: Path, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps((MEANS, VARIANCES, IDS), protocol))


def write_pickled_lists(path: Path) -> None:
    value = [list(MEANS), [row.tolist() for row in VARIANCES], np.array(IDS)]
    path.write_bytes(pickle.dumps(value, 5))


FORMATS: dict[str, tuple[str, Writer, tuple[str, ...]]] = {
    "parquet": ("a.parquet", write_parquet, ALL),
    "arrow file": ("a.arrow", write_ipc, ALL),
    "arrow file, lz4": ("a.ipc", lambda path: write_ipc(path, compression="lz4"), ALL),
    "arrow stream": ("a.arrow", lambda path: write_ipc(path, stream=True), ALL),
    "feather": ("a.feather", lambda path: pyarrow.feather.write_feather(TABLE, str(path), chunksize=6), ALL),
    "npz": ("a.npz", write_npz, ALL),
    "npz, compressed": ("a.npz", lambda path: write_npz(path, np.savez_compressed), ALL),
    "npz, bytes and big-endian": ("a.npz", write_npz_bytes, ALL),
    "safetensors": ("a.safetensors", write_safetensors, NUMBERS),
    "jsonl": ("a.jsonl", write_plain, ALL),
    "ndjson.gz": ("a.ndjson.gz", write_gzip, ALL),
    "jsonl.zst": ("a.JSONL.zst", write_zstd, ALL),
    "pickle 0": ("a.pkl", lambda path: write_pickle(path, 0), NONE),
    "pickle 2": ("a.pkl", lambda path: write_pickle(path, 2), NONE),
    "pickle 4": ("a.pickle", write_pickle, NONE),
    "pickle 5, lists": ("a.pickle", write_pickled_lists, NONE),
}


@pytest.fixture(params=list(FORMATS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    name, write, payload = FORMATS[request.param]
    write(tmp_path / name)
    return tmp_path / name, payload


def joined(batches: Iterable[SourceBatch]) -> dict[str, Any]:
    """Everything in the batches, as plain lists."""
    whole: dict[str, Any] = {"id": [], "mean": [], "variance": [], "rows": [], "payload": []}
    for batch in batches:
        assert 0 < len(batch.ids) == len(batch.gaussians) == len(batch.rows)
        assert batch.ids.type == pa.string()
        assert batch.gaussians.means.dtype == torch.float32
        assert batch.rows.dtype == np.int64
        whole["id"] += batch.ids.to_pylist()
        whole["mean"] += batch.gaussians.means.tolist()
        whole["variance"] += batch.gaussians.variances.tolist()
        whole["rows"] += batch.rows.tolist()
        whole["payload"] += [] if batch.payload is None else batch.payload.to_pylist()
    return whole


def write_jsonl(path: Path, records: Iterable[object]) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def record(name: object = "a", mean: object = (0.0, 1.0), variance: object = (1.0, 2.0), **payload: object) -> Any:
    return {"id": name, "mean": mean, "variance": variance, **payload}


def read_all(path: Path, **options: Any) -> dict[str, Any]:
    return joined(Corpus([path], **options).batches())


# Formats


def test_formats_agree(written: tuple[Path, tuple[str, ...]]) -> None:
    path, payload = written
    corpus = Corpus([path])
    batches = list(corpus.batches(batch_rows=BATCH))
    assert max(len(batch.ids) for batch in batches) <= BATCH
    whole = joined(batches)
    assert whole["id"] == IDS
    assert whole["mean"] == MEANS.tolist()
    assert whole["variance"] == VARIANCES.tolist()
    is_json = "json" in path.name.lower()
    assert whole["rows"] == [row * 2 + 1 if is_json else row for row in range(N)]
    assert batches[-1].next_row == N
    for batch in batches:
        assert (batch.payload is None) == (not payload)
        if batch.payload is not None:
            assert set(batch.payload.column_names) == set(payload)
            expected = TABLE.select(batch.payload.column_names)
            assert batch.payload.schema == expected.schema
            assert (
                batch.payload.to_pylist() == expected.slice(batch.next_row - len(batch.ids), len(batch.ids)).to_pylist()
            )


@pytest.mark.parametrize("batch_rows", [1, 3, BATCH])
def test_resuming_gives_the_tail(written: tuple[Path, tuple[str, ...]], batch_rows: int) -> None:
    corpus = Corpus([written[0]])
    whole = joined(corpus.batches(batch_rows=batch_rows))
    for start in range(N + 2):
        tail = joined(corpus.batches(start=(0, start), batch_rows=batch_rows))
        assert tail == {name: values[start:] for name, values in whole.items()}


def test_locate_in_every_format(written: tuple[Path, tuple[str, ...]]) -> None:
    path, _ = written
    row = "line 15" if "json" in path.name.lower() else "row 7"
    assert Corpus([path]).locate({IDS[7], "nowhere"}) == {IDS[7]: [f"{path} {row}"], "nowhere": []}


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.97])
def test_truncated_files_name_the_file(written: tuple[Path, tuple[str, ...]], part: float) -> None:
    path, _ = written
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    if path.suffix == ".jsonl" and part == 0:
        assert read_all(path)["id"] == []
        return
    with pytest.raises(SourceError, match=path.name):
        read_all(path)


@pytest.mark.parametrize("name", ["parquet", "npz, compressed", "safetensors", "pickle 4", "ndjson.gz", "jsonl.zst"])
def test_noise_names_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / FORMATS[name][0]
    path.write_bytes(np.random.default_rng(3).bytes(5000))
    with pytest.raises(SourceError, match=path.name):
        read_all(path)


def test_damage_is_refused_or_goes_unseen_but_never_surprises(written: tuple[Path, tuple[str, ...]]) -> None:
    path, _ = written
    sound, generator = path.read_bytes(), np.random.default_rng(4)
    for _ in range(40):
        damaged = np.frombuffer(sound, np.uint8).copy()
        damaged[generator.integers(len(sound), size=3)] = generator.integers(256, size=3)
        # A file that is still mapped must not be written over.
        path.unlink()
        path.write_bytes(damaged.tobytes())
        with contextlib.suppress(SourceError):
            read_all(path)


def test_damaged_npz_fails_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path)
    data = path.read_bytes().replace(MEANS[4].tobytes(), MEANS[5].tobytes(), 1)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.npz.*CRC"):
        read_all(path)


def test_a_stream_whose_writer_died_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_ipc(path, stream=True)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SourceError, match=r"a\.arrow: it has no end-of-stream marker"):
        read_all(path)


def test_safetensors_takes_bfloat16_and_integer_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    means = torch.from_numpy(MEANS).bfloat16()
    tensors = {"id": torch.arange(N), "mean": means, "variance": torch.from_numpy(VARIANCES).half(), "x": means.clone()}
    save_file(tensors, path)
    whole = read_all(path)
    assert whole["id"] == [str(row) for row in range(N)]
    assert whole["mean"] == means.tolist()
    assert whole["payload"] == [{"x": row} for row in means.tolist()]


def test_npz_lists_become_payload(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", id=np.arange(N), mean=MEANS, variance=VARIANCES, tokens=np.arange(2 * N).reshape(N, 2))
    assert read_all(tmp_path / "a.npz")["payload"][3] == {"tokens": [6, 7]}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"x": np.zeros(N + 1)}, "array 'x' has 11 rows and 'id' 10"),
        ({"x": np.zeros((N, 2, 2))}, "array 'x' has shape"),
        ({"x": np.zeros(())}, "array 'x' has shape"),
        ({"x": np.zeros((N, 0))}, "array 'x' has shape"),
        ({"x": np.array([{}] * N)}, "array 'x' is object"),
        ({"x": np.zeros(N, "M8[s]")}, "array 'x' is datetime64"),
        ({"x": np.zeros(N, complex)}, "array 'x' is complex128"),
        ({"x": np.array([["a"]] * N)}, "array 'x' is <U1"),
        ({"x": np.array([b"\xff"] * N)}, r"row 0 to 9, array 'x': it is not valid text"),
        ({"mean": np.zeros(N)}, r"array 'mean' has shape \(10,\); it must be \(rows, k\)"),
        ({"mean": np.asfortranarray(np.ones((N, K)))}, "array 'mean' is stored column by column"),
        ({"id": np.linspace(0, 1, N)}, "column 'id' is double; ids are strings or integers"),
        ({"id": np.array([["a"], {}], dtype=object)}, "array 'id' is object"),
    ],
)
def test_arrays_that_npz_may_not_hold(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = {"id": np.arange(N), "mean": MEANS, "variance": VARIANCES, **extra}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SourceError, match=message):
        read_all(tmp_path / "a.npz")


def test_npz_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 3), }\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(100)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("mean", "variance"):
            archive.writestr(f"{name}.npy", member)
        archive.writestr("id.npy", member.replace(b"(1000000000, 3), }", b"(1000000000,), }  "))
    with pytest.raises(SourceError, match=r"a\.npz: cannot be read as NPZ: array '\w+' ends early"):
        read_all(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_streamed(save: Callable[..., None], tmp_path: Path) -> None:
    ones = np.ones((50_000, 128), np.float32)
    save(tmp_path / "a.npz", id=np.arange(len(ones)), mean=ones, variance=ones)
    corpus = Corpus([tmp_path / "a.npz"])
    del ones
    tracemalloc.start()
    try:
        rows = sum(len(batch.ids) for batch in corpus.batches(batch_rows=1024))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 50_000
    assert peak < 8e6, "the two members hold 51 MB"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (MEANS, "tuple of three"),
        ((MEANS, VARIANCES), "tuple of three"),
        ((MEANS[:5], VARIANCES, IDS), "5 means, 10 variances and 10 ids"),
        ((MEANS, VARIANCES[0], IDS), r"'variance' is float32 of shape \(3,\)"),
        ((MEANS, {"a": 1}, IDS), "'variance' is a dict"),
        ((MEANS, [*VARIANCES[:9], ["x"]], IDS), "row 9, column 'variance'"),
        ((MEANS, VARIANCES, "abcdefghij"), "'id' is a str"),
        ((MEANS, VARIANCES, [*IDS[:9], 1.5]), "row 9, column 'id': 1.5 is neither"),
        ((MEANS, VARIANCES, np.zeros(N)), "'id' is float64"),
    ],
)
def test_pickles_of_another_form(value: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(SourceError, match=message):
        read_all(tmp_path / "a.pkl")


# Columns and types


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    pq.write_table(TABLE.rename_columns(["key", "mu", "sigma2", "id", *ALL[1:]]), tmp_path / "a.parquet")
    whole = read_all(tmp_path / "a.parquet", columns=Columns("key", "mu", "sigma2"))
    assert whole["id"] == IDS
    assert whole["payload"][0]["id"] == 1990


def test_missing_and_repeated_columns(tmp_path: Path) -> None:
    pq.write_table(TABLE.rename_columns(["key", "mean", "variance", *ALL]), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: there is no column 'id'; it has 'key', 'mean'"):
        read_all(tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), pa.schema([*TABLE.schema, TABLE.schema.field("id")])):
        pass
    with pytest.raises(SourceError, match="2 columns named 'id'"):
        read_all(tmp_path / "a.arrow")
    with pytest.raises(SourceError, match="three columns"):
        Columns(mean="id")


@pytest.mark.parametrize("lacking", ["id", "mean", "variance"])
def test_json_lines_without_a_column_say_what_parquet_says(lacking: str, tmp_path: Path) -> None:
    names = ["other" if name == lacking else name for name in ("id", "mean", "variance")]
    pq.write_table(pa.table(dict(zip(names, (["a"], [[0.0]], [[1.0]]), strict=True))), tmp_path / "a.parquet")
    with pytest.raises(SourceError) as parquet:
        read_all(tmp_path / "a.parquet")
    rows = [dict(zip(names, row, strict=True)) for row in (("a", [0.0], [1.0]), ("b", [0.0], [1.0]))]
    lines = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(SourceError) as stopped:
        read_all(lines)
    listed = ", ".join(map(repr, names))
    said = f": there is no column {lacking!r}; it has {listed}. Say which columns hold id, mean and variance"
    options = " (--id-column, --mean-column, --variance-column)"
    assert str(parquet.value) == f"{tmp_path / 'a.parquet'}{said}{options}"
    assert str(stopped.value) == f"{lines} line 1{said}{options}"
    with RejectedRows(tmp_path / "rejected.jsonl") as rejected:
        assert list(Corpus([lines], rejected=rejected).batches()) == []
    assert (rejected.count, rejected.first) == (2, str(stopped.value))
    # Where other rows have it, it is the row that is to be corrected.
    with pytest.raises(SourceError, match=f"line 2, column '{lacking}': it is missing.*Correct the row"):
        read_all(write_jsonl(tmp_path / "b.jsonl", [record(mean=[0.0], variance=[1.0]), rows[1]]))


def test_a_row_of_many_columns_is_not_listed_whole(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", [{f"{column}" * 90: 0 for column in range(100, 600)}])
    with pytest.raises(SourceError, match=r"'139139.*', \.\.\.\. Say which") as stopped:
        read_all(lines)
    assert len(str(stopped.value)) < 5000


FLOATS = [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint64()]


@pytest.mark.parametrize("number", FLOATS, ids=str)
@pytest.mark.parametrize("of", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_vector_types_and_slices(number: Any, of: Callable[[Any], Any], tmp_path: Path) -> None:
    kind = of(number)
    values = [[row, row + 1] for row in range(1, 9)]
    vectors = pa.array(values, pa.list_(pa.int64())).cast(pa.list_(pa.float64()))
    flat = np.array(values).ravel().astype(number.to_pandas_dtype())
    vectors = (
        pa.FixedSizeListArray.from_arrays(pa.array(flat), 2)
        if pa.types.is_fixed_size_list(kind)
        else (pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray).from_arrays(
            pa.array(range(0, 17, 2), pa.int64() if pa.types.is_large_list(kind) else pa.int32()), pa.array(flat)
        )
    )
    table = pa.table({"id": pa.array(range(8), pa.uint16()), "mean": vectors, "variance": vectors}).slice(3, 4)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    batches = list(Corpus([tmp_path / "a.arrow"]).batches(start=(0, 1), batch_rows=2))
    assert joined(batches)["mean"] == values[4:7]
    assert joined(batches)["id"] == ["4", "5", "6"]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["5", "6"]),
        pa.array(["5", "6"], pa.large_string()),
        pa.array(["5", "6"]).dictionary_encode(),
        pa.array([5, 6], pa.int32()),
        pa.array([5, 6], pa.uint64()),
        pa.array([5, 6]).dictionary_encode(),
    ],
)
def test_id_and_payload_types(ids: Any, tmp_path: Path) -> None:
    vectors = pa.array([[1.0], [2.0]])
    pq.write_table(pa.table({"id": ids, "mean": vectors, "variance": vectors, "x": ids}), tmp_path / "a.parquet")
    (batch,) = Corpus([tmp_path / "a.parquet"]).batches()
    assert batch.ids.to_pylist() == ["5", "6"]
    assert batch.payload is not None
    assert batch.payload.schema.field("x").type == (ids.type.value_type if hasattr(ids, "dictionary") else ids.type)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("id", [1.5, 2.5], "column 'id' is double; ids are strings or integers"),
        ("id", [True, False], "column 'id' is bool"),
        ("mean", [1.0, 2.0], "column 'mean' is double; it must be lists of numbers"),
        ("variance", [["a"], ["b"]], r"column 'variance' is list<\w+: string>"),
    ],
)
def test_column_types_that_cannot_be_used(column: str, values: list[Any], message: str, tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "mean": [[1.0], [2.0]], "variance": [[1.0], [2.0]], column: values}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=message):
        read_all(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("variance_as", "written", "expected"),
    [
        (VarianceAs.VARIANCE, [0.25, 4.0], [0.25, 4.0]),
        (VarianceAs.LOGVAR, [0.0, math.log(4.0)], [1.0, 4.0]),
        (VarianceAs.LOGVAR, [-1.0, 2.0], [0.36787944117144233, 7.38905609893065]),
        (VarianceAs.STD, [0.5, 3.0], [0.25, 9.0]),
    ],
)
def test_variance_as(variance_as: VarianceAs, written: list[float], expected: list[float], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [record(variance=written)])
    assert read_all(path, variance_as=variance_as)["variance"] == [np.array(expected, np.float32).tolist()]


@given(
    hnp.arrays(np.float64, (3, 2), elements=st.floats(allow_nan=True, allow_infinity=True)), st.sampled_from(VarianceAs)
)
def test_a_row_is_kept_just_where_float32_holds_it(
    tmp_path_factory: Any, spreads: Any, variance_as: VarianceAs
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.npz"
    np.savez(path, id=np.arange(3), mean=np.zeros((3, 2)), variance=spreads)
    with np.errstate(all="ignore"):
        wide = {"variance": spreads, "logvar": np.exp(spreads), "std": np.where(spreads > 0, spreads**2, -1)}[
            variance_as
        ]
        narrow = wide.astype(np.float32)
        good = ((narrow > 0) & np.isfinite(narrow)).all(axis=1)
    with RejectedRows(path.parent / "rejected.jsonl") as rejected:
        whole = read_all(path, variance_as=variance_as, rejected=rejected)
    assert whole["rows"] == np.flatnonzero(good).tolist()
    assert whole["variance"] == narrow[good].tolist()
    assert rejected.count == 3 - len(whole["rows"])


# Defects

DEFECTS: list[tuple[Any, str | None, Any, str]] = [
    (record(None), "id", None, "it must not be null"),
    (record(""), "id", "", "it must not be empty"),
    (record(1.5), "id", 1.5, "it must be a string or an integer"),
    (record(True), "id", True, "it must be a string or an integer"),
    (record("é" * 300), "id", "é" * 80 + "...", "it has 600 bytes in UTF-8; at most 512 are accepted"),
    ({"id": "x", "mean": [1, 2]}, "variance", None, "it is missing"),
    (record(mean=None), "mean", None, "it must not be null"),
    (record(mean=[]), "mean", "[]", "it must not be empty"),
    (record(mean="1 2"), "mean", "1 2", "it must be a list of numbers"),
    (record(mean=[1, "2"]), "mean", "2", "component 1: it must be a number"),
    (record(mean=[1, True]), "mean", True, "component 1: it must be a number"),
    (record(variance=[1, None]), "variance", None, "component 1: it must not be null"),
    (record(mean=[1, 2, 3]), "variance", "[1.0, 2.0]", "it has 2 components and the mean 3"),
    (record(mean=[1], variance=[1]), "mean", "[1.0]", "it has 1 components; the corpus has 2"),
    (record(mean=[0, 1e300]), "mean", 1e300, "component 1: float32 cannot hold it"),
    (record(variance=[0, 1]), "variance", 0.0, "component 0: it must be above zero"),
    (record(variance=[1, -0.1]), "variance", -0.1, "component 1: it must be above zero"),
    (record(variance=[1, 1e-60]), "variance", 1e-60, "component 1: float32 cannot hold it"),
    (record(variance=[1e60, 1]), "variance", 1e60, "component 0: float32 cannot hold it"),
    ([1, 2], None, "[1, 2]", "it is not a JSON object"),
]


@pytest.mark.parametrize(("bad", "column", "value", "reason"), DEFECTS)
def test_each_defect_names_its_place(bad: Any, column: str | None, value: Any, reason: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", [record("first"), bad, record("last")])
    with pytest.raises(SourceError) as stopped:
        read_all(path)
    where = f"{path} line 2" + ("" if column is None else f", column '{column}'")
    assert str(stopped.value).startswith(f"{where}: {reason}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert f"(the value is {value!r})" in str(stopped.value)
    with RejectedRows(tmp_path / "rejected.jsonl") as rejected:
        assert read_all(path, rejected=rejected)["rows"] == [1, 3]
    assert rejected.count == 1
    assert [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()] == [
        {"file": str(path), "row": 2, "column": column, "value": value, "reason": reason}
    ]


@pytest.mark.parametrize("line", [b"{", b'{"id": NaN}', b'{"id": "\xff"}', b"nonsense", b"[" * 100_000])
def test_lines_that_are_not_json(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(orjson.dumps(record()) + b"\n\n" + line + b"\n")
    with pytest.raises(SourceError, match=r"a\.jsonl line 3: it is not JSON"):
        read_all(path)


def test_defects_in_columnar_formats_have_their_row_and_value_as_written(tmp_path: Path) -> None:
    variances = VARIANCES.copy()
    variances[6, 2] = -0.1
    variances[8, 0] = np.nan
    np.savez(tmp_path / "a.npz", id=np.arange(N), mean=MEANS, variance=variances)
    message = r"a\.npz row 6, column 'variance': component 2: it must be above zero \(the value is -0\.1\)"
    with pytest.raises(SourceError, match=message):
        read_all(tmp_path / "a.npz")
    with RejectedRows(tmp_path / "r") as rejected:
        assert read_all(tmp_path / "a.npz", rejected=rejected)["rows"] == [0, 1, 2, 3, 4, 5, 7, 9]
    assert json.loads((tmp_path / "r").read_text().splitlines()[1])["value"] == "nan"


def test_nulls_and_ragged_rows_in_arrow(tmp_path: Path) -> None:
    ones = [1.0, 1.0]
    table = pa.table(
        {
            "id": ["a", None, "c", "d", "e", "f", "g"],
            "mean": [ones, ones, None, [1.0, None], ones, [], ones],
            "variance": [ones, ones, ones, ones, [1.0, 1.0, 1.0], ones, ones],
            "text": list("abcdefg"),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with RejectedRows(tmp_path / "rejected") as rejected:
        whole = read_all(tmp_path / "a.parquet", rejected=rejected)
    assert whole["id"] == ["a", "g"]
    assert whole["payload"] == [{"text": "a"}, {"text": "g"}]
    lines = [json.loads(line) for line in (tmp_path / "rejected").read_text().splitlines()]
    assert [(line["row"], line["column"]) for line in lines] == [
        (1, "id"), (2, "mean"), (3, "mean"), (4, "variance"), (5, "mean"),
    ]  # fmt: skip


def test_vectors_wider_than_any_encoder(tmp_path: Path) -> None:
    wide = np.ones((2, 65_537), np.float16)
    np.savez(tmp_path / "a.npz", id=np.arange(2), mean=wide, variance=wide)
    with pytest.raises(SourceError, match="row 0, column 'mean': it has 65537 components; at most 65536 are supported"):
        read_all(tmp_path / "a.npz")


def test_nulls_in_fixed_size_lists(tmp_path: Path) -> None:
    kind = pa.list_(pa.float16(), 2)
    mean = pa.array([[9.0, 9.0], None, [1.0, 2.0], [None, 4.0], [5.0, 6.0]], kind)
    ones = pa.array([[1.0, 1.0]] * 5, kind)
    table = pa.table({"id": list("zabcd"), "mean": mean, "variance": ones}).slice(1)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with RejectedRows(tmp_path / "rejected") as rejected:
        whole = read_all(tmp_path / "a.arrow", rejected=rejected)
    assert whole["mean"] == [[1.0, 2.0], [5.0, 6.0]]
    assert rejected.count == 2


def test_the_first_good_row_decides_the_width_wherever_reading_starts(tmp_path: Path) -> None:
    wide = {"mean": [1, 1, 1], "variance": [1, 1, 1]}
    records = [record("bad", [1], [0]), record("a"), record("b", **wide), record("c", **wide), record("d")]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    with RejectedRows(tmp_path / "rejected") as rejected:
        corpus = Corpus([path], rejected=rejected)
        assert joined(corpus.batches(batch_rows=1))["id"] == ["a", "d"]
        assert rejected.count == 3
        assert joined(corpus.batches(start=(0, 2)))["id"] == ["d"]
        assert rejected.count == 5
        assert joined(corpus.batches(k=3))["id"] == ["b", "c"]


def test_batches_that_are_wholly_rejected_are_not_yielded(tmp_path: Path) -> None:
    records = [record(str(row)) if row in (4, 9) else record("") for row in range(12)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    with RejectedRows(tmp_path / "rejected") as rejected:
        batches = list(Corpus([path], rejected=rejected).batches(batch_rows=2))
    assert [(batch.ids.to_pylist(), batch.next_row) for batch in batches] == [(["4"], 6), (["9"], 10)]
    assert rejected.count == 10


def test_rejected_rows_append_and_are_on_disk_at_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [record("")])
    for lines in (1, 2):
        with RejectedRows(tmp_path / "rejected") as rejected:
            read_all(path, rejected=rejected)
            assert len((tmp_path / "rejected").read_text().splitlines()) == lines
        assert rejected.count == 1
    with pytest.raises(ValueError, match="inside the `with` block"):
        read_all(path, rejected=rejected)


# JSON Lines


def test_payload_of_json_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [record("a", y=1), record("b", x="t", y=2.5), record("c", z={"k": [1]})])
    (batch,) = Corpus([path]).batches()
    assert batch.payload is not None
    assert batch.payload.column_names == ["y", "x", "z"]
    assert batch.payload.to_pydict() == {"y": [1.0, 2.5, None], "x": [None, "t", None], "z": [None, None, {"k": [1]}]}


def test_payload_types_that_do_not_go_together(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [record("a"), record("b", y=1), record("c", y=2), record("d", y="three")])
    message = r"a\.jsonl line 4, column 'y': 'three' does not go into one column with 1 of .*a\.jsonl line 2"
    with pytest.raises(SourceError, match=message):
        read_all(path)
    write_jsonl(path, [record("a", y=1), record("b", y=2**63)])
    with pytest.raises(SourceError, match=r"line 2, column 'y': 9223372036854775808 cannot be stored"):
        read_all(path)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 100)
    path = write_jsonl(tmp_path / "a.jsonl", [record("a"), record("b", text="x" * 100)])
    with pytest.raises(SourceError, match=r"a\.jsonl line 2: it is longer than 100 bytes"):
        read_all(path)


def test_a_batch_of_long_lines_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    path = write_jsonl(tmp_path / "a.jsonl", [record(str(row)) for row in range(7)])
    batches = list(Corpus([path]).batches())
    assert [len(batch.ids) for batch in batches] == [2, 2, 2, 1]
    assert [batch.next_row for batch in batches] == [2, 4, 6, 7]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_cut_short_is_not_a_bad_row(suffix: str, tmp_path: Path) -> None:
    lines = b"".join(
        orjson.dumps(record(str(row), np.random.default_rng(row).random(2).tolist())) + b"\n" for row in range(3000)
    )
    compress = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(lines)[:-3])
    with RejectedRows(tmp_path / "rejected") as rejected:
        batches = Corpus([path], rejected=rejected).batches(batch_rows=100)
        assert next(batches).ids.to_pylist()[-1] == "99"
        with pytest.raises(SourceError, match=rf"a\.jsonl\{suffix} line \d+: the file cannot be read on"):
            list(batches)
    assert rejected.count == 0


# The corpus


def test_files_folders_and_globs(tmp_path: Path) -> None:
    names = [
        "b.jsonl",
        "a.jsonl.gz",
        "sub/c.parquet",
        "sub/.d.parquet",
        ".hidden/e.npz",
        "README.md",
        "x.gz",
        "p.npz.gz",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def files(*sources: str | Path) -> list[str]:
        return [file.relative_to(tmp_path).as_posix() for file in Corpus(sources).files]

    assert files(tmp_path) == ["a.jsonl.gz", "b.jsonl", "sub/c.parquet"]
    assert files(tmp_path / "sub", tmp_path) == ["sub/c.parquet", "a.jsonl.gz", "b.jsonl"]
    assert files(tmp_path / "b.jsonl", str(tmp_path / "*.jsonl*")) == ["b.jsonl", "a.jsonl.gz"]
    assert files(f"{tmp_path}/**/*.parquet") == ["sub/c.parquet"]
    (tmp_path / "[b].jsonl").touch()
    assert files(tmp_path / "[b].jsonl") == ["[b].jsonl"]
    assert Corpus(str(tmp_path / "b.jsonl")).files == (tmp_path / "b.jsonl",)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "no corpus"),
        (["none.jsonl"], r"none\.jsonl: there is no such file"),
        (["*.parquet"], r"\*\.parquet: no file has such a name"),
        (["empty"], r"empty: there is no file in it whose name ends in \.parquet"),
        (["a.xls"], r"a\.xls: its format is not known"),
        (["*.csv"], r"a\.csv: CSV is not read"),
    ],
)
def test_sources_that_name_nothing(
    sources: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.csv", "a.xls"):
        Path(name).touch()
    with pytest.raises(SourceError, match=message):
        Corpus(sources)


def test_several_files(tmp_path: Path) -> None:
    for name, records in {"a": ["1", "2", "3"], "b": [], "c": ["4"]}.items():
        write_jsonl(tmp_path / f"{name}.jsonl", [record(item) for item in records])
    corpus = Corpus([tmp_path])
    batches = list(corpus.batches(batch_rows=2))
    assert [(batch.file_index, batch.next_row, batch.file.name) for batch in batches] == [
        (0, 2, "a.jsonl"), (0, 3, "a.jsonl"), (2, 1, "c.jsonl"),
    ]  # fmt: skip
    for position, batch in enumerate(batches):
        rest = corpus.batches(start=(batch.file_index, batch.next_row), batch_rows=2)
        assert joined(rest) == joined(batches[position + 1 :])
    assert list(corpus.batches(start=(3, 0))) == []


def test_cuts_fall_after_so_many_good_rows_whatever_is_rejected(tmp_path: Path) -> None:
    bad = {2, 3, 5, 9}
    write_jsonl(tmp_path / "a.jsonl", [record("" if row in bad else str(row)) for row in range(8)])
    write_jsonl(tmp_path / "b.jsonl", [record("" if row in bad else str(row)) for row in range(8, 13)])
    with RejectedRows(tmp_path / "rejected") as rejected:
        corpus = Corpus([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], rejected=rejected)
        whole = joined(corpus.batches())
        rejected.count = 0
        segments: list[list[SourceBatch]] = [[]]
        for batch in corpus.batches(cut_every=3, batch_rows=100):
            segments[-1].append(batch)
            if sum(map(len, segments[-1])) == 3:
                # Whoever starts again here meets each bad row that has not been counted, and no other.
                seen, at = rejected.count, (batch.file_index, batch.next_row)
                tail = joined(corpus.batches(start=at))
                assert rejected.count - seen == len(bad) - seen
                assert tail["id"] == whole["id"][3 * len(segments) :]
                rejected.count = seen
                segments.append([])
    assert [[item for batch in segment for item in batch.ids.to_pylist()] for segment in segments] == [
        ["0", "1", "4"], ["6", "7", "8"], ["10", "11", "12"], [],
    ]  # fmt: skip
    assert rejected.count == len(bad)


def test_split(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz")
    (batch,) = Corpus([tmp_path / "a.npz"]).batches()
    assert batch.split(N) == (batch, None)
    for rows in range(1, N):
        head, tail = batch.split(rows)
        assert tail is not None
        assert (len(head), head.next_row, len(tail), tail.next_row) == (rows, rows, N - rows, N)
        assert joined([head, tail]) == joined([batch])
    with pytest.raises(InvalidOptionError):
        batch.split(0)


def test_locate_names_every_place(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [record("x"), record("y"), record("x"), record(7)])
    np.savez(tmp_path / "b.npz", id=np.array([7, 8]), mean=np.ones((2, 2)), variance=np.ones((2, 2)))
    assert Corpus([tmp_path]).locate(["x", "7"]) == {
        "x": [f"{tmp_path}/a.jsonl line 1", f"{tmp_path}/a.jsonl line 3"],
        "7": [f"{tmp_path}/a.jsonl line 4", f"{tmp_path}/b.npz row 0"],
    }


@pytest.mark.parametrize(("start", "batch_rows"), [((0, 0), 0), ((2, 0), 1), ((-1, 0), 1), ((0, -1), 1)])
def test_starts_and_sizes_outside_the_corpus(start: tuple[int, int], batch_rows: int, tmp_path: Path) -> None:
    corpus = Corpus([write_jsonl(tmp_path / "a.jsonl", [record()])])
    with pytest.raises(InvalidOptionError):
        corpus.batches(start=start, batch_rows=batch_rows)


def test_digest_knows_content_and_options_and_no_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "a.jsonl", [record("a")])
        write_jsonl(tmp_path / folder / "b.jsonl", [record("b")])
    one, two = tmp_path / "one", tmp_path / "two"
    digest = Corpus([one]).digest()
    assert Corpus([two]).digest() == digest
    others = [
        Corpus([one / "b.jsonl", one / "a.jsonl"]).digest(),
        Corpus([one / "a.jsonl"]).digest(),
        Corpus([one], columns=Columns(mean="mu")).digest(),
        Corpus([one], variance_as=VarianceAs.STD).digest(),
    ]
    write_jsonl(two / "b.jsonl", [record("c")])
    assert len({digest, Corpus([two]).digest(), *others}) == 6
    (two / "b.jsonl").unlink()
    corpus = Corpus([one])
    (one / "a.jsonl").unlink()
    with pytest.raises(SourceError, match=r"a\.jsonl: cannot be read"):
        corpus.digest()
    with pytest.raises(SourceError, match=r"a\.jsonl"):
        list(corpus.batches())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.jsonl", "line"),
        ("a.NDJSON.gz", "line"),
        ("a.jsonl.zst", "line"),
        ("a.parquet", "row"),
        ("a.jsonl.npz", "row"),
    ],
)
def test_place(name: str, said: str) -> None:
    assert place(Path("x", name), 12) == f"x/{name} {said} 12"
