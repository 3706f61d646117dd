"""Attacks on Arrow's files: compressed, out of order, of other types, and with values that lie elsewhere."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.hostile import Attack, content


def _table(what: str, name: str, table: pa.Table, **options: Any) -> Attack:
    def change(root: Path, _: Path) -> None:
        with pa.ipc.new_file(str(root / name), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(table)

    return Attack(what, name, change, signed=True)


def arrow_attacks(root: Path, name: str) -> Iterator[Attack]:
    # In no thread but this one: the process forks.
    table = pa.ipc.open_file(str(root / name), options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
    rows = len(table)
    yield _table("compressed", name, table, compression="zstd")
    yield _table("of an older version", name, table, metadata_version=pa.ipc.MetadataVersion.V4)
    yield _table("without columns", name, table.select([]))
    yield _table("a row fewer", name, table[1:])
    yield _table("a column more", name, table.append_column("more", pa.nulls(rows)))
    yield from (ids_attacks if name.endswith("ids.arrow") else payload_attacks)(name, table)
    yield from string_attacks(root, name, table[0 if name.endswith("ids.arrow") else "text"].combine_chunks())


def ids_attacks(name: str, table: pa.Table) -> Iterator[Attack]:
    ids, order = table["id"].combine_chunks(), table["order"].to_numpy()
    rows = len(ids)
    for value in (rows, 1 << 31, (1 << 32) - 1):
        changed = order.copy()
        changed[rows // 2] = value
        yield _table(f"order of {value}", name, _ids(ids, changed))
    yield _table("order of the wrong way", name, _ids(ids, order[::-1]))
    yield _table("order of one document", name, _ids(ids, np.zeros_like(order)))
    yield _table("order of 64 bits", name, pa.table({"id": ids, "order": order.astype(np.int64)}))
    yield _table("no order", name, pa.table({"id": ids, "order": pa.nulls(rows, pa.uint32())}))
    yield _table("an id twice", name, _ids(pa.concat_arrays([ids[:1], ids[:-1]]), order))
    for kind in (pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())):
        yield _table(f"ids of {kind}", name, pa.table({"id": ids.cast(kind), "order": order}))
    yield _table("ids that are missing", name, _ids(pa.nulls(rows, pa.string()), order))
    yield _table("columns the other way round", name, table.select(["order", "id"]))


def _ids(ids: pa.Array, order: Any) -> pa.Table:
    return pa.table({"id": ids, "order": pa.array(order, pa.uint32())})


def string_attacks(root: Path, name: str, strings: pa.Array) -> Iterator[Attack]:
    """Strings that lie outside of the file, backwards, or are no text."""
    data, (_, offsets, text) = (root / name).read_bytes(), strings.buffers()
    first, letters = data.index(offsets.to_pybytes()), data.index(text.to_pybytes())
    for what, place, value in (
        ("far behind", 5, 1 << 30),
        ("before", 5, -(1 << 30)),
        ("backwards", 5, 0),
        ("too long at the end", len(strings), 1 << 30),
    ):
        changed = data[: first + 4 * place] + struct.pack("<i", value) + data[first + 4 * place + 4 :]
        yield content(f"a string that lies {what}", name, changed)
    yield content("strings that are no text", name, data[:letters] + b"\xff" * len(text) + data[letters + len(text) :])


def payload_attacks(name: str, table: pa.Table) -> Iterator[Attack]:
    rows = len(table)
    text = table["text"].combine_chunks()
    bomb = pa.table({"text": ["x" * 1_000_000] * rows})
    yield _table("a hundred megabytes in few bytes", name, bomb, compression="zstd")
    places = pa.array(np.arange(rows, dtype=np.int32) + 10**6)
    outside = pa.DictionaryArray.from_arrays(places, pa.array(["a", "b"]), safe=False)
    yield _table("places outside of a dictionary", name, pa.table({"text": outside}))
    for zone in ("Mars/Phobos", "../../../etc/passwd", "+99:99", "\0"):
        moments = pa.array(np.arange(rows), pa.timestamp("ns", zone))
        yield _table(f"times of {zone!r}", name, pa.table({"text": moments}))
    nested = pa.array([0] * rows)
    for _ in range(50):
        nested = pa.StructArray.from_arrays([nested], ["a"])
    yield _table("fifty structures in each other", name, pa.table({"text": nested}))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), pa.array(range(rows)))
    offsets = np.arange(rows + 1, dtype=np.int32)
    offsets[7] = 1 << 30
    broken = pa.ListArray.from_buffers(
        lists.type, rows, [None, pa.py_buffer(offsets.tobytes())], children=[lists.values]
    )
    yield _table("lists that lie outside", name, pa.table({"text": broken}))
    yield _table("a thousand columns of one name", name, pa.table([text] * 1000, names=["a"] * 1000))
    described = pa.field("text", pa.string(), metadata={
        "ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": "cos\nabort\n(tR.",
    })  # fmt: skip
    yield _table("a type that Python would load", name, pa.table([text], schema=pa.schema([described])))
    for extension in ("arrow.fixed_shape_tensor", "arrow.json", "arrow.uuid", "arrow.opaque"):
        field = pa.field("text", pa.string(), metadata={"ARROW:extension:name": extension})
        yield _table(f"a type {extension}", name, pa.table([text], schema=pa.schema([field])))
