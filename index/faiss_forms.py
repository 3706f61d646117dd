"""Which files of FAISS's own indexes may be given to FAISS: those of which every field is known and fits the others.

FAISS's reader is made for files that FAISS wrote. Of others it may take any amount of memory, map a file elsewhere
(inverted lists can name one), or make an index whose searches read beyond its end. So a file is gone through first,
field by field. What this module does not know is not read, and not built either.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from index.faiss_fields import INNER_PRODUCT, L2, Fields, Header

__all__ = ["KNOWN", "require_known_index"]

KNOWN = "Flat, SQ and PQ (also fs), in IVF lists or not, behind PCA, OPQ, RR, HR or Pad"
"""The words of FAISS's factory that make such files."""

MOST_TRANSFORMS = 8
MOST_DIMENSIONS = 1 << 17
FASTSCAN_BLOCK = 32
"""Documents that a fast scan takes at a time, unless FAISS is told otherwise."""

_BITS = {0: 8, 1: 4, 2: 8, 3: 4, 4: 16, 5: 8, 6: 6, 7: 16, 8: 8}
"""Bits of a number by FAISS's kinds of scalar quantisers."""
_TRAINED: dict[int, Callable[[int], int]] = {
    **dict.fromkeys((0, 1, 6), lambda d: 2 * d),
    **dict.fromkeys((2, 3), lambda _: 2),
}
"""How many numbers they were trained to, where it is not none."""


def require_known_index(data: npt.NDArray[np.uint8], documents: int, dimensions: int) -> None:
    """ValueError unless the bytes are an index, by inner product, of so many documents and dimensions, of a form that
    is known here, and nothing else."""
    fields = Fields(data.data)
    form = fields.name()
    if form == "IxPT":
        _header(fields, documents, dimensions)
        (transforms,) = fields.read("i")
        if not 1 <= transforms <= MOST_TRANSFORMS:
            raise ValueError(f"it has {transforms} transformations")
        for _ in range(transforms):
            dimensions = _transform(fields, dimensions)
        form = fields.name()
    if form not in _FORMS:
        raise ValueError(f"its form {form!r} is none of {KNOWN}")
    _FORMS[form](fields, documents, dimensions)
    fields.end()


def _header(fields: Fields, documents: int, dimensions: int, *, metric: int = INNER_PRODUCT) -> None:
    found, expected = fields.header(), Header(dimensions, documents, True, metric)
    if found[:2] != expected[:2]:
        raise ValueError(
            f"it holds {found.documents} documents of {found.dimensions} numbers, not {documents} of {dimensions}"
        )
    if found != expected:
        raise ValueError(f"it is {found}, not {expected}")


def _transform(fields: Fields, dimensions: int) -> int:
    """One transformation; what dimensions come out of it."""
    form = fields.name()
    if form in ("LTra", "rrot", "PcAm", "Pcam"):
        if form in ("PcAm", "Pcam"):
            fields.read("f" if form == "PcAm" else "ff")
            fields.flag()
            fields.read("i")
            for _ in ("mean", "eigenvalues", "all components"):
                fields.vector("f4")
        has_bias, matrix, bias = fields.flag(), fields.vector("f4"), fields.vector("f4")
        given, made = _sizes(fields, dimensions)
        if len(matrix) != given * made or (has_bias and len(bias) != made):
            raise ValueError(f"a transformation from {given} to {made} numbers has a matrix of {len(matrix)}")
        return made
    if form == "RmDT":
        places = fields.vector("i4")
        given, made = _sizes(fields, dimensions)
        if len(places) != made or places.min() < -1 or places.max() >= given:
            raise ValueError(f"a transformation puts {given} numbers into other places than {made}")
        return made
    if form == "HRot":
        fields.read("I")
        given, made = _sizes(fields, dimensions)
        if made != 1 << (given - 1).bit_length():
            raise ValueError(f"a rotation of {given} numbers makes {made}")
        return made
    raise ValueError(f"its transformation {form!r} is none of {KNOWN}")


def _sizes(fields: Fields, dimensions: int) -> tuple[int, int]:
    given, made = fields.read("ii")
    if given != dimensions or not 1 <= made <= MOST_DIMENSIONS or not fields.flag():
        raise ValueError(f"a transformation is from {given} to {made} numbers, where there are {dimensions}")
    return given, made


def _flat(fields: Fields, documents: int, dimensions: int, metric: int = INNER_PRODUCT) -> None:
    _header(fields, documents, dimensions, metric=metric)
    fields.vector("f4", documents * dimensions)


def _scalar(fields: Fields, documents: int, dimensions: int) -> None:
    _header(fields, documents, dimensions)
    fields.vector("u1", documents * _scalar_quantiser(fields, dimensions))


def _scalar_quantiser(fields: Fields, dimensions: int) -> int:
    """A scalar quantiser; bytes of its codes."""
    kind, _, _, its_dimensions, code_bytes = fields.read("iifQQ")
    expected = (_BITS.get(kind, 0) * dimensions + 7) // 8
    if kind not in _BITS or (its_dimensions, code_bytes) != (dimensions, expected):
        raise ValueError(f"its scalar quantiser is of kind {kind}, {its_dimensions} numbers and {code_bytes} bytes")
    fields.vector("f4", _TRAINED[kind](dimensions) if kind in _TRAINED else 0)
    return expected


def _products(fields: Fields, documents: int, dimensions: int) -> None:
    _header(fields, documents, dimensions)
    _, _, code_bytes = _product_quantiser(fields, dimensions)
    fields.vector("u1", documents * code_bytes)
    fields.read("i")
    fields.flag()
    fields.read("i")


def _product_quantiser(fields: Fields, dimensions: int) -> tuple[int, int, int]:
    """A product quantiser: its digits, the bits of each, bytes of its codes."""
    its_dimensions, digits, bits = fields.read("QQQ")
    if its_dimensions != dimensions or not 1 <= digits <= dimensions or dimensions % digits or not 1 <= bits <= 16:
        raise ValueError(f"its product quantiser is of {its_dimensions} numbers in {digits} digits of {bits} bits")
    fields.vector("f4", dimensions << bits)
    return digits, bits, (digits * bits + 7) // 8


def _fastscan_block(digits: int, bits: int) -> int:
    """Bytes of the codes that a fast scan takes at a time."""
    if bits != 4:
        raise ValueError(f"its fast scan is of digits of {bits} bits")
    return (digits + digits % 2) * FASTSCAN_BLOCK // 2


def _fastscan(fields: Fields, documents: int, dimensions: int) -> None:
    _header(fields, documents, dimensions)
    digits, bits, _ = _product_quantiser(fields, dimensions)
    blocks, layout = -(-documents // FASTSCAN_BLOCK), fields.read("iiiQQ")
    if layout != (0, FASTSCAN_BLOCK, 0, blocks * FASTSCAN_BLOCK, digits + digits % 2):
        raise ValueError(f"its codes are laid out in the way {layout}")
    fields.vector("u1", blocks * _fastscan_block(digits, bits))


def _lists_header(fields: Fields, documents: int, dimensions: int) -> int:
    """What every index of lists begins with; how many lists there are."""
    _header(fields, documents, dimensions)
    lists, _ = fields.read("QQ")
    form = fields.name()
    if form not in ("IxFI", "IxF2"):
        raise ValueError(f"its lists are chosen by {form!r}, not by Flat")
    _flat(fields, lists, dimensions, INNER_PRODUCT if form == "IxFI" else L2)
    (maps_numbers,) = fields.read("B")
    if maps_numbers:
        raise ValueError(f"it maps documents to lists in the way {maps_numbers}")
    fields.vector("i8", 0)
    return int(lists)


def _flat_lists(fields: Fields, documents: int, dimensions: int) -> None:
    _lists(fields, documents, _lists_header(fields, documents, dimensions), 4 * dimensions)


def _scalar_lists(fields: Fields, documents: int, dimensions: int) -> None:
    lists = _lists_header(fields, documents, dimensions)
    code_bytes = _scalar_quantiser(fields, dimensions)
    _require(fields.read("Q") == (code_bytes,), "bytes of a code")
    fields.flag()
    _lists(fields, documents, lists, code_bytes)


def _product_lists(fields: Fields, documents: int, dimensions: int) -> None:
    lists = _lists_header(fields, documents, dimensions)
    fields.flag()
    (stored,) = fields.read("Q")
    _, _, code_bytes = _product_quantiser(fields, dimensions)
    _require(stored == code_bytes, "bytes of a code")
    _lists(fields, documents, lists, code_bytes)


def _fastscan_lists(fields: Fields, documents: int, dimensions: int) -> None:
    lists = _lists_header(fields, documents, dimensions)
    fields.flag()
    stored, *layout = fields.read("QiQiQ")
    digits, bits, code_bytes = _product_quantiser(fields, dimensions)
    _require((stored, *layout) == (code_bytes, FASTSCAN_BLOCK, digits + digits % 2, 0, 0), "layout of codes")
    block = _fastscan_block(digits, bits)
    _require(fields.name() == "ilbl", "form of lists")
    # The second is for lists that are not in blocks.
    its_lists, _, a_block, its_bytes = fields.read("QQQQ")
    _require((its_lists, a_block, its_bytes) == (lists, FASTSCAN_BLOCK, block), "layout of lists")
    numbers = []
    for _ in range(lists):
        numbers.append(fields.vector("i8"))
        fields.vector("u1", -(-len(numbers[-1]) // FASTSCAN_BLOCK) * block)
    _require_all(numbers, documents)


def _lists(fields: Fields, documents: int, lists: int, code_bytes: int) -> None:
    _require(fields.name() == "ilar" and fields.read("QQ") == (lists, code_bytes), "form of lists")
    form = fields.name()
    if form == "full":
        sizes = fields.vector("u8", lists)
    elif form == "sprs":
        pairs = fields.vector("u8")
        listed = pairs[::2]
        _require(len(pairs) % 2 == 0 and len(np.unique(listed)) == len(listed), "table of lists")
        _require(bool((listed < lists).all()), "table of lists")
        sizes = np.zeros(lists, dtype=np.uint64)
        sizes[listed.astype(np.int64)] = pairs[1::2]
    else:
        raise ValueError(f"its lists' sizes are of the form {form!r}")
    _require(bool((sizes <= documents).all()), "sizes of lists")
    numbers = []
    for size in sizes[sizes > 0].tolist():
        fields.take(size * code_bytes)
        numbers.append(np.frombuffer(fields.take(8 * size), "<i8"))
    _require_all(numbers, documents)


def _require_all(numbers: list[npt.NDArray[np.int64]], documents: int) -> None:
    """ValueError unless lists hold each document once."""
    together = np.concatenate(numbers) if numbers else np.empty(0, np.int64)
    is_there = np.zeros(documents, dtype=np.bool_)
    if len(together) == documents and together.min(initial=0) >= 0 and together.max(initial=0) < documents:
        is_there[together] = True
    if not is_there.all():
        raise ValueError(f"its lists do not hold each of {documents} documents once")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"its {what} is not what it should be")


_FORMS: dict[str, Callable[[Fields, int, int], None]] = {
    "IxFI": _flat,
    "IxSQ": _scalar,
    "IxPq": _products,
    "IPfs": _fastscan,
    "IwFl": _flat_lists,
    "IwSq": _scalar_lists,
    "IwPQ": _product_lists,
    "IwPf": _fastscan_lists,
}
