"""Attacks on FAISS's files: sizes that are not those of what follows, links and lists that lead elsewhere, others."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from tests.hostile import Attack, content, vectors_of

HEADER = 37
"""Bytes of an index's form and header."""


class Places:
    """Where the parts of a file of FAISS's lie, for attacks to write there."""

    def __init__(self, data: bytes, place: int = 0) -> None:
        self.data, self.place = data, place

    def vector(self, size: int) -> range:
        """The places of a vector's items."""
        (count,) = struct.unpack_from("<Q", self.data, self.place)
        first = self.place + 8
        self.place = first + count * size
        return range(first, self.place, size)

    def put(self, form: str, place: int, value: int) -> bytes:
        """The file with a number somewhere."""
        changed = bytearray(self.data)
        struct.pack_into("<" + form, changed, place, value)
        return bytes(changed)


def field_attacks(root: Path) -> Iterator[Attack]:
    """Whatever numbers FAISS may read at the beginning of a segment's index and of its parts, by others."""
    name = vectors_of(root)
    data = (root / name).read_bytes()
    parts = {0, *(data.find(part) for part in (b"IxF", b"ilar", b"ilbl", b"LTra", b"RmDT", b"IxSQ", b"IwPQ"))} - {-1}
    for first in sorted(parts):
        for place in range(first + 4, min(first + 160, len(data) - 8), 4):
            for value in (0, -1, 1, 1 << 20, (1 << 31) - 1, 1 << 40, 1 << 62):
                yield content(f"{value} at byte {place}", name, Places(data).put("q", place, value))


def faiss_attacks(root: Path, name: str, kind: str) -> Iterator[Attack]:
    """On the index of a segment."""
    data = (root / name).read_bytes()
    d, documents = struct.unpack_from("<iq", data, 4)
    for place, form in ((4, "i"), (8, "q"), (33, "i")):
        for value in (0, -1, 1, documents + 1, (1 << 31) - 1):
            yield content(f"{value} at byte {place}", name, Places(data).put(form, place, value))
    products = ("PQ8x4", "PQ8x4fs") if d % 8 == 0 else ()
    for other in ("Flat", "SQ8", "IVF4,Flat", "HNSW8,Flat", "Flat,RFlat", "RQ2x4", *products):
        yield Attack(f"an index {other}", name, _index(name, other, documents, d), signed=True)
    nothing = b"IxPT" + data[4:HEADER] + bytes(4)
    yield content("a hundred thousand transformations of none", name, nothing * 100_000 + data)
    yield content("a million transformations", name, nothing[:-4] + struct.pack("<i", 10**6) + data)
    if "IVF" in kind:
        yield from invlists_attacks(data, name, documents)
    elif kind.endswith("PQ8x4fs"):
        size = -(-documents // 32) * 32 * 4
        start = len(data) - size
        yield content("fewer codes than documents", name, data[: start - 8] + struct.pack("<Q", 32) + data[start:][:32])


def _index(name: str, factory: str, documents: int, d: int) -> Callable[[Path, Path], object]:
    def change(root: Path, _: Path) -> None:
        index: Any = faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT)
        vectors = np.random.default_rng(0).standard_normal((max(documents, 300), d)).astype(np.float32)
        index.train(vectors)
        index.add(vectors[:documents])
        (root / name).write_bytes(bytes(faiss.serialize_index(index)))

    return change


def invlists_attacks(data: bytes, name: str, documents: int) -> Iterator[Attack]:
    """On lists: of documents that are not there, in files elsewhere, or chosen by such."""
    lists = data.rindex(b"ilar" if b"ilar" in data else b"ilbl")
    # The last list's numbers end an array of lists; in blocks, the first list's stand before its codes.
    number = len(data) - 8 if b"ilar" in data else lists + 44
    for value in (-1, documents, 1 << 31, 1 << 62):
        yield content(f"document {value} in a list", name, Places(data).put("q", number, value))
    on_disk = b""
    for elsewhere in (b"/etc/passwd", b"CURRENT", b"/dev/zero"):
        # Four lists of a hundred codes, at the beginning of that file.
        listed = struct.pack("<QQQ", 100, 100, 0) * 4
        on_disk = b"ilod" + struct.pack("<QQQ", 4, 16, 4) + listed + struct.pack("<Q", 0)
        on_disk += struct.pack("<Q", len(elsewhere)) + elsewhere + struct.pack("<Q", 1 << 12)
        yield content(f"lists in {elsewhere!r}", name, data[:lists] + on_disk)
    # What chooses the lists is read by FAISS without the options that it is called with.
    first = data.index(b"IxF", 4)
    inner = data[first - 53 : lists] + on_disk
    yield content("lists chosen by lists elsewhere", name, data[:first] + inner + data[first:])


def graph_attacks(root: Path, name: str) -> Iterator[Attack]:
    """On the links of a graph."""
    places = Places((root / name).read_bytes(), HEADER)
    _, counts, levels, starts, links = (places.vector(size) for size in (8, 4, 4, 8, 4))
    documents = len(levels)
    for value in (documents, -2, (1 << 31) - 1, -(1 << 31)):
        for place in (links[0], links[len(links) // 2], links[-1]):
            yield content(f"a link to {value}", name, places.put("i", place, value))
    for value in (0, -1, 63, (1 << 31) - 1):
        yield content(f"a document on {value} levels", name, places.put("i", levels[3], value))
        yield content(f"{value} links on the lowest level", name, places.put("i", counts[1], value))
        yield content(f"{value} links on the next level", name, places.put("i", counts[2], value))
    for value in (1, 1 << 40, (1 << 64) - 1):
        yield content(f"links at {value}", name, places.put("Q", starts[3], value))
        yield content(f"the last links at {value}", name, places.put("Q", starts[-1], value))
    for value in (-1, documents, 5, 1000, (1 << 31) - 1):
        yield content(f"walks from document {value}", name, places.put("i", places.place, value))
        yield content(f"walks from level {value}", name, places.put("i", places.place + 4, value))
    yield from level_attacks(name, places, levels, starts, links[0])
    yield from form_attacks(name, places, documents)


def level_attacks(name: str, places: Places, levels: range, starts: range, links: int) -> Iterator[Attack]:
    """Links on a level to a document that is not on it, whose own links of that level are therefore another's."""
    on_levels = np.frombuffer(places.data, "<i4", len(levels), levels[0])
    alone = int(np.flatnonzero(on_levels == 1)[-1])
    # As many links as a document has that is on the lowest level alone.
    lowest = int(np.diff(np.frombuffer(places.data, "<u8", len(starts), starts[0])).min())
    yield content("walks from a document of one level", name, places.put("i", places.place, alone))
    for row in np.flatnonzero(on_levels > 1).tolist():
        (start,) = struct.unpack_from("<Q", places.data, starts[row])
        on_next = links + 4 * (start + lowest)
        yield content(f"document {row} linked to one on fewer levels", name, places.put("i", on_next, alone))


def form_attacks(name: str, places: Places, documents: int) -> Iterator[Attack]:
    """Graphs of other forms and sizes."""
    for form in (b"IHNf", b"IHN2", b"IHNp", b"IHNc", b"IHfP", b"null", b"IH00"):
        yield content(f"of the form {form!r}", name, form + places.data[4:])
    for value in (documents - 1, documents + 1, 1 << 62, -1):
        yield content(f"{value} documents", name, places.put("q", 8, value))
    own = bytes(faiss.serialize_index(faiss.IndexFlatL2(4)))
    yield content("with documents of its own", name, places.data[:-4] + own)
