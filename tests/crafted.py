"""Attacks by somebody who knows the formats: manifests that claim what is not so, and arrays that do not fit.

Those on Arrow's and FAISS's files are in tests.crafted_arrow and tests.crafted_faiss. All are signed.
"""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.crafted_arrow import arrow_attacks
from tests.crafted_faiss import faiss_attacks, graph_attacks
from tests.hostile import ALIKE, Attack, content, files_of, vectors_of

MANIFEST = "manifests/00000001.json"
HUGE = 10**400
NAMES = ["../x", "/etc/passwd", "..", "", "{}\n", "{}\0", "{}/../{}", "./{}", "{}.", "\uff10{}", "\u2024\u2024/{}"]
"""In place of a name; {} is what it was."""
PAIRS: list[Any] = [
    *([], [[1]], [[1, 1, 1]], [[1, HUGE]], [[0, 1]], [[5, 5], [1, 1]], [[1, 5], [2, 1]], "1"),
    *([[1, 1]], [[10, 1 << 40]], [[1000, 1], [1001, 1 << 40]], [[1, 1 << 40], [1 << 40, 1 << 40]]),
]
"""In place of what was measured."""


def crafted_attacks(kind: str, root: Path) -> Iterator[Attack]:
    """Those on an index of some kind; on what all kinds have, where this is flat: they share what reads it."""
    manifest = json.loads((root / MANIFEST).read_bytes())
    if kind in ALIKE:
        yield from faiss_attacks(root, vectors_of(root), kind)
        return
    yield from manifest_attacks(manifest)
    if manifest["codes"]:
        yield from codes_attacks(manifest["codes"])
        yield from codebook_attacks(root, f"codebooks/{manifest['codes']['codebook']}")
    else:
        yield from text_attacks()
    for name in files_of(root):
        if name.endswith("vectors.faiss"):
            yield from faiss_attacks(root, name, kind)
        elif name.startswith("structures/"):
            yield from (list_attacks if name.endswith(".safetensors") else graph_attacks)(root, name)
        elif name.endswith("projected.npy"):
            yield from array_attacks(root, name)
        elif kind == "flat":
            yield from common_attacks(root, name)


def common_attacks(root: Path, name: str) -> Iterator[Attack]:
    if name.endswith("segment.json"):
        yield from segment_attacks(name)
    elif name.endswith(".npy"):
        yield from array_attacks(root, name)
    elif name.endswith(".arrow"):
        yield from arrow_attacks(root, name)


def edit(what: str, file: str, change: Callable[[dict[str, Any]], object]) -> Attack:
    """An attack that changes what a JSON file says."""

    def apply(root: Path, _: Path) -> None:
        said = json.loads((root / file).read_bytes())
        change(said)
        (root / file).write_text(json.dumps(said))

    return Attack(what, file, apply, signed=True)


def put(file: str, value: object, *path: str | int) -> Attack:
    """An attack that puts a value into one place of a JSON file."""

    def change(said: Any) -> None:
        *first, last = path
        for key in first:
            said = said[key]
        said[last] = value.replace("{}", str(said[last])) if isinstance(value, str) else value

    return edit(f"{'.'.join(map(str, path))} is {str(value)[:30]!r}", file, change)


def puts(file: str, values: dict[str, list[Any]], *path: str | int) -> Iterator[Attack]:
    """Attacks that put each of some values into fields of one part of a JSON file."""
    for name, each in values.items():
        for value in each:
            yield put(file, value, *path, name)


def manifest_attacks(manifest: dict[str, Any]) -> Iterator[Attack]:
    kinds = ("flat", "fastscan", "ivf-fastscan", "hnsw", "faiss", "auto")
    yield from puts(
        MANIFEST,
        {
            "k": [3, 5, 65_536, 65_537, 10**9, HUGE, -1, "4", None, 4.0],
            "kind": [kind for kind in kinds if kind != manifest["kind"]],
            "encoding": [each for each in ("simplified", "full", "folded", "") if each != manifest["encoding"]],
            "format_version": [1, 10**6, HUGE, "x" * 10**6, None],
            "generation": [0, 10**30],
            "documents": [0, 10**15, HUGE],
            "segments": [[], [{}] * 300_000, None],
            "deletes": [["d1"]],
        },
    )
    for count in (10**15, 1 << 47, HUGE):
        yield edit(f"{count:.2g} documents" if count < HUGE else "too many documents", MANIFEST, _claims(count))
    yield from puts(MANIFEST, {"id": NAMES, "bytes": [10**15, 1, HUGE]}, "segments", 0)
    for value in (1e308, -1e200, float("nan"), "1"):
        yield put(MANIFEST, value, "standardisation", "shift", 0)
    for value in (1e-300, 0.0, 1e300, -1.0):
        yield put(MANIFEST, value, "standardisation", "scale", 0)
    yield from puts(MANIFEST, {name: [[], [1.0] * 10**6] for name in ("shift", "scale")}, "standardisation")


def _claims(count: int) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        first, *rest = manifest["segments"]
        first["documents"], first["bytes"] = count, 100 * count
        manifest["documents"] = count + sum(segment["documents"] for segment in rest)

    return change


def text_attacks() -> Iterator[Attack]:
    texts = {
        "a million brackets": b"[" * 10**6,
        "a million nested objects": b'{"k":' * 10**6,
        "a million unknown fields": b"{" + b",".join(b'"%d":0' % number for number in range(10**6)) + b"}",
        "nothing": b"",
        "a list": b"[]",
        "bytes that are no text": b'{"k": "\xff\xfe"}',
        "a number of a million digits": b'{"k": ' + b"9" * 10**6 + b"}",
    }
    for what, text in texts.items():
        yield content(what, MANIFEST, text)
    for name in ("../manifests/00000001.json", "/00000001.json", "00000001.json\0", "1.json", "0000000\u0661.json"):

        def change(root: Path, _: Path, name: str = name) -> None:
            checksum = (root / "CURRENT").read_text().split()[1]
            (root / "CURRENT").write_text(f"{name} {checksum}\n")

        yield Attack(f"names {name!r}", "CURRENT", change)


def codes_attacks(codes: dict[str, Any]) -> Iterator[Attack]:
    values: dict[str, list[Any]] = {
        "code_bytes": [1, 10**9, 0],
        "dimensions": [1, 10**9],
        "breadth": [1e308, 1 << 40, 0.5, float("nan"), float("inf")],
        "candidates": PAIRS,
        **{part: [None] for part in ("graph", "lists", "factory") if codes[part]},
    }
    yield from puts(MANIFEST, values, "codes")
    yield from file_attacks("codes", "codebook")
    for part in ("graph", "lists"):
        if codes[part]:
            yield from file_attacks("codes", part, "name")
    for part in ("lists", "factory"):
        if codes[part]:
            yield from puts(MANIFEST, {"lists": [1, 10**9, 0], "nprobe": PAIRS}, "codes", part)
    if codes["factory"]:
        yield from puts(MANIFEST, {"factory": ["IVF1000000000,Flat", "", "\0", "x" * 10**6]}, "codes", "factory")


def file_attacks(*name: str) -> Iterator[Attack]:
    """On the record of a file, whose name is there."""
    for value in NAMES:
        yield put(MANIFEST, value, *name)
    for size in (10**15, 1 << 40, 1):
        yield put(MANIFEST, size, *name[:-1], "file", "bytes")


def segment_attacks(file: str) -> Iterator[Attack]:
    yield from puts(
        file,
        {
            "k": [3, 5, 65_536, HUGE],
            "documents": [1, 10**15, HUGE],
            "encoding": ["full", "simplified", "folded"],
            "max_norm": [-1.0, 0.0, 1e308, float("nan")],
            "codebook": [None, "0" * 64],
            "id": ["{}\n", ".."],
        },
    )
    for name in ("vectors.faiss", "gaussians.npy", "ids.arrow", "payload.arrow", "projected.npy"):
        yield edit(f"without {name}", file, functools.partial(_without, name))
        if name != "projected.npy":
            yield from puts(file, {"bytes": [10**15, 1, 0, HUGE]}, "files", name)
    for name in ("../../CURRENT", "/etc/passwd", "vectors.faiss\0", "segment.json"):
        yield edit(f"with {name!r}", file, functools.partial(_with, name))


def _without(name: str, segment: dict[str, Any]) -> None:
    segment["files"].pop(name, None)


def _with(name: str, segment: dict[str, Any]) -> None:
    segment["files"][name] = segment["files"]["ids.arrow"]


def array_attacks(root: Path, name: str) -> Iterator[Attack]:
    array = np.load(root / name)
    rows, columns = array.shape
    variants: dict[str, Any] = {
        "of float64": array.astype(np.float64),
        "column by column": np.asfortranarray(array),
        "with the other end first": array.astype(array.dtype.newbyteorder(">")),
        "of another shape": array.reshape(columns, rows),
        "flat": array.ravel(),
        "a column fewer": array[:, 1:],
        "with fields": np.zeros(rows, [("a", "u1", array.nbytes // rows)]),
    }
    for what, variant in variants.items():
        yield _array(what, name, variant)
    body, kind = array.tobytes(), array.dtype.str
    headers = {
        "10^18 rows": f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({10**18}, {columns}), }}",
        "rows of 400 digits": f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({HUGE}, {columns}), }}",
        "fewer than no rows": f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (-{rows}, -{columns}), }}",
        "brackets": "(" * 5000,
        "signs": "-" * 5000 + "1",
        "a call": "__import__('os').abort()",
        "another type": f"{{'descr': 'V1000000000', 'fortran_order': False, 'shape': ({rows}, {columns}), }}",
    }
    for what, header in headers.items():
        text = header.encode() + b" " * (-len(header) % 64) + b"\n"
        yield content(f"a header of {what}", name, b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + body)
    if name.endswith("gaussians.npy"):
        for value in (np.nan, np.inf, -1.0, 0.0, 3e38, 1e-45):
            for column in (0, columns - 1):
                changed = array.copy()
                changed[rows // 2 :, column] = value
                yield _array(f"{value} in column {column}", name, changed)


def _array(what: str, name: str, array: Any) -> Attack:
    return Attack(what, name, lambda root, _: np.save(root / name, array), signed=True)


def codebook_attacks(root: Path, name: str) -> Iterator[Attack]:
    arrays = safetensors.numpy.load_file(root / name)
    yield from tensor_attacks(name, arrays)
    r = arrays["documents"].shape[1]
    yield saved("no dimensions", name, arrays | {key: arrays[key][:, :0] for key in ("documents", "queries")})
    wider = {key: np.pad(arrays[key], ((0, 0), (0, 16))) for key in ("documents", "queries")}
    yield saved("more dimensions", name, arrays | wider)
    if "places" in arrays:
        places, digits = arrays["places"], len(arrays["centroids"])
        for value in (-1, r + 1, 10**9, 1 << 62, -(1 << 62)):
            changed = places.copy()
            changed[3] = value
            yield saved(f"a place of {value}", name, arrays | {"places": changed})
        for value in (-1, digits, 10**9):
            yield saved(f"double of {value}", name, arrays | {"double": np.array([value])})
        yield saved("no digits", name, arrays | {"centroids": arrays["centroids"][:0], "places": places[:0]})
        odd = {"centroids": arrays["centroids"][:-1], "places": places[:-4]}
        yield saved("an odd number of digits", name, arrays | odd)
        fewer = {"centroids": arrays["centroids"][:-2], "places": places[:-8]}
        yield saved("fewer digits", name, arrays | fewer)
        yield saved("values of 8 bits", name, arrays | {"centroids": np.tile(arrays["centroids"], (1, 16, 1))})
    if "ranges" in arrays:
        for value in (0.0, -1.0, 3e38):
            yield saved(f"ranges of {value}", name, arrays | {"ranges": np.full((2, r), value, np.float32)})
        for shape in ((0, r), (1, r), (2, r), (3, r), (0, 0), (0, 10**9)):
            if shape != arrays["ranges"].shape:
                yield saved(f"ranges {shape}", name, arrays | {"ranges": np.ones(shape, np.float32)})
    if "trained" in arrays:
        for size in (0, 4, 40, len(arrays["trained"]) - 1):
            yield saved(f"{size} bytes of FAISS", name, arrays | {"trained": arrays["trained"][:size]})


def list_attacks(root: Path, name: str) -> Iterator[Attack]:
    arrays = safetensors.numpy.load_file(root / name)
    yield from tensor_attacks(name, arrays)
    for value in (-1, len(arrays["centroids"]), (1 << 31) - 1, -(1 << 31)):
        members = arrays["members"].copy()
        members[5] = value
        yield saved(f"a document in list {value}", name, arrays | {"members": members})
    yield saved("all in one list", name, arrays | {"members": np.zeros_like(arrays["members"])})
    yield saved("no lists", name, {key: array[:0] for key, array in arrays.items()})


def tensor_attacks(name: str, arrays: dict[str, Any]) -> Iterator[Attack]:
    """Arrays of other types and shapes, missing or besides."""
    yield saved("another array", name, arrays | {"more": np.zeros(1)})
    yield saved("nothing", name, {})
    for key, array in arrays.items():
        yield saved(f"without {key}", name, {other: arrays[other] for other in arrays if other != key})
        other = np.float16 if array.dtype.kind == "f" else np.float64
        yield saved(f"{key} of another type", name, arrays | {key: array.astype(other)})
        yield saved(f"{key} a row shorter", name, arrays | {key: array[:-1]})
        yield saved(f"{key} in a row", name, arrays | {key: array[None]})
        yield saved(f"{key} empty", name, arrays | {key: array[:0]})
        yield saved(f"{key} turned", name, arrays | {key: np.ascontiguousarray(array.T)})
        if array.dtype.kind == "f":
            for value in (np.nan, np.inf, 3e38):
                yield saved(f"{key} of {value}", name, arrays | {key: np.full_like(array, value)})
    for header in ('{"center":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}', "{}", "[", '{"":1}', "9" * 99):
        data = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
        yield content(f"a header of {header[:30]!r}", name, data)
    for size in (0, 1 << 40, (1 << 64) - 1):
        yield content(f"a header of {size} bytes", name, size.to_bytes(8, "little") + bytes(100))


def saved(what: str, name: str, arrays: dict[str, Any]) -> Attack:
    return Attack(what, name, lambda root, _: safetensors.numpy.save_file(arrays, root / name), signed=True)
