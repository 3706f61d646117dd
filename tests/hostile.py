"""Index directories as somebody would make them who wants to harm their reader: what is changed, and how it is signed.

An attack changes one thing in a copy of a small index of some kind. Unsigned, checksums tell of it. Signed, all of them
are made right again, up to CURRENT, as whoever can write a file can do; then what it says has to be looked at.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index import BuildOptions, IndexDirectory, build_index
from index.durable import checksum
from tests.conftest import random_gaussians, write_corpus

DOCUMENTS, K = 200, 4

KINDS: dict[str, dict[str, Any]] = {
    "flat": {},
    "flat full": {"encoding": "full"},
    "flat folded": {"encoding": "folded"},
    "fastscan": {"kind": "fastscan"},
    "ivf-fastscan": {"kind": "ivf-fastscan"},
    "hnsw": {"kind": "hnsw"},
    "faiss Flat": {"kind": "faiss", "factory": "Flat"},
    "faiss IVF4,SQ8": {"kind": "faiss", "factory": "IVF4,SQ8"},
    "faiss PQ8x4fs": {"kind": "faiss", "factory": "PQ8x4fs"},
    "faiss IVF4,PQ8x4fs": {"kind": "faiss", "factory": "IVF4,PQ8x4fs"},
    "faiss OPQ8,IVF4,PQ8x4": {"kind": "faiss", "factory": "OPQ8,IVF4,PQ8x4"},
    "faiss HR,Pad32,SQ6": {"kind": "faiss", "factory": "HR,Pad32,SQ6"},
}


ALIKE = {kind for kind in KINDS if kind.startswith("faiss ")} - {"faiss Flat", "faiss IVF4,SQ8"}
"""Kinds that differ from these in nothing but their segments' vectors.faiss, so that only this is attacked."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A change of the index at a path, which has a twin of other documents, and the file that is to be named for it."""

    name: str
    file: str
    change: Callable[[Path, Path], object]
    signed: bool = False


def make(folder: Path, kind: str) -> None:
    """An index of two segments and a twin of the same shape: folder/index, folder/twin."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(("index", "twin")):
        documents = DOCUMENTS if "OPQ" not in kind else 400
        texts, ids = ([f"{word}{row}" for row in range(documents)] for word in (f"{name} ", "de"[seed]))
        corpus = write_corpus(folder / f"{name}.parquet", random_gaussians(documents, K, seed=seed), ids, text=texts)
        options = BuildOptions(segment_docs=documents // 2, device="cpu", **KINDS[kind])
        manifest = build_index([corpus], IndexDirectory(folder / name), options).manifest
        assert manifest.kind == options.kind, manifest.reason


def sign(root: Path, changed: str) -> None:
    """Makes every size and checksum right that is above a changed file, as far as manifests can be understood."""
    current = (root / "CURRENT").read_bytes()
    path = root / "manifests" / current[:13].decode(errors="replace")
    try:
        if changed.startswith("manifests/"):
            raise ValueError("what it says is left as it is")
        manifest = json.loads(path.read_bytes())
        codes = manifest["codes"]
        for folder, record in (("codebooks", codes), ("structures", codes and (codes["graph"] or codes["lists"]))):
            if record:
                record["file"] = entry(root / folder / record.get("codebook", record.get("name")))
        for segment in manifest["segments"]:
            sign_segment(root / "segments" / segment["id"], segment, codes, changed)
        path.write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        pass
    token = f"{path.name} {checksum(path.read_bytes())}\n"
    (root / "CURRENT").write_text(token)
    if not changed.endswith(".blake3"):
        path.with_suffix(".blake3").write_text(token)


def sign_segment(folder: Path, record: dict[str, Any], codes: dict[str, Any] | None, changed: str) -> None:
    try:
        segment = json.loads((folder / "segment.json").read_bytes())
        if not changed.endswith("segment.json"):
            for name in segment["files"]:
                segment["files"][name] = entry(folder / name)
            segment["codebook"] = codes["file"]["blake3"] if codes else None
            (folder / "segment.json").write_text(json.dumps(segment))
        record["bytes"] = sum(file["bytes"] for file in segment["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        pass
    record["blake3"] = checksum((folder / "segment.json").read_bytes())


def entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "blake3": checksum(data)}


def files_of(root: Path) -> list[str]:
    """The files of an index, of its segments those of the first."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return [name for name in names if not name.startswith("segments/") or name.split("/")[1].endswith("00000")]


def vectors_of(root: Path) -> str:
    """The first segment's vectors.faiss."""
    return next(name for name in files_of(root) if name.endswith("vectors.faiss"))


def boundaries(name: str, data: bytes) -> set[int]:
    """Where parts of a file begin."""
    if name.endswith(".safetensors"):
        return {8, 8 + struct.unpack_from("<Q", data)[0]}
    if name.endswith(".npy"):
        return {10, 10 + struct.unpack_from("<H", data, 8)[0]}
    if name.endswith(".arrow"):
        return {8, len(data) - 10, len(data) - 10 - struct.unpack_from("<i", data, len(data) - 10)[0]}
    if name.endswith(".faiss"):
        return {4, 37, 45, 69}
    return {len(data) // 2}


def contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """What is in place of the content of a file: cut at every boundary, with flipped bits, or longer."""
    inside = {offset for offset in boundaries(name, data) if 0 < offset < len(data)}
    cuts = {0, 1, len(data) - 1} | {offset + step for offset in inside for step in (-1, 0, 1)}
    for size in sorted(cuts & set(range(len(data)))):
        yield f"cut to {size} bytes", data[:size]
    for offset in sorted({0, len(data) // 4, len(data) // 2, len(data) - 1} | inside):
        bit = 1 << (offset % 8)
        yield f"byte {offset} with a bit flipped", data[:offset] + bytes([data[offset] ^ bit]) + data[offset + 1 :]
    yield "a byte longer", data + b"\0"
    yield "twice", data * 2


def attacks_on_files(root: Path, kind: str) -> Iterator[Attack]:
    """Everything that can be done to each file without knowing what it says; content also signed."""
    for name in files_of(root):
        if kind in ALIKE and not name.endswith("vectors.faiss"):
            continue
        for what, data in contents(name, (root / name).read_bytes()):
            yield content(what, name, data, signed=False)
            if name != "CURRENT":
                yield content(what, name, data)
        yield Attack("another index's", name, _swap(name))
        yield Attack("another index's", name, _swap(name), signed=True)
        yield Attack("missing", name, _missing(name))
        yield Attack("a folder", name, _folder(name))
        yield Attack("a link", name, _link(name))
        yield Attack("a pipe", name, _pipe(name))
        yield Attack("of a terabyte, without taking room", name, _sparse(name))
    for name in ("manifests", "segments", "codebooks", "structures"):
        if (root / name).exists():
            yield Attack("a link", name, _link(name))
    first = min((root / "segments").iterdir()).relative_to(root)
    yield Attack("a link", str(first), _link(str(first)))


def content(what: str, name: str, data: bytes, signed: bool = True) -> Attack:
    """An attack that puts bytes in place of a file."""
    return Attack(what, name, lambda root, _: (root / name).write_bytes(data), signed)


def twin_of(name: str, root: Path, twin: Path) -> Path:
    """The file of the twin that is to it what this one is to its index: their names begin with what built them."""
    own, others = ([file for file in files_of(each) if file.count("/") == name.count("/")] for each in (root, twin))
    return twin / others[own.index(name)]


def _swap(name: str) -> Callable[[Path, Path], object]:
    return lambda root, twin: shutil.copyfile(twin_of(name, root, twin), root / name)


def _missing(name: str) -> Callable[[Path, Path], object]:
    return lambda root, _: (root / name).unlink()


def _folder(name: str) -> Callable[[Path, Path], object]:
    def change(root: Path, _: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return change


def _link(name: str) -> Callable[[Path, Path], object]:
    """To what is right, so that it is for being a link that it is refused."""

    def change(root: Path, _: Path) -> None:
        outside = root.with_name("outside")
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        (root / name).rename(outside / "it")
        (root / name).symlink_to(outside / "it")

    return change


def _pipe(name: str) -> Callable[[Path, Path], object]:
    def change(root: Path, _: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return change


def _sparse(name: str) -> Callable[[Path, Path], object]:
    return lambda root, _: os.truncate(root / name, 1 << 40)
