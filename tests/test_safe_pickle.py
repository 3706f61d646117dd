"""The unpickler: arrays come through unchanged, and nothing that a pickle names is ever run."""

import builtins
import codecs
import functools
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.errors import SourceError
from index.formats.safe_pickle import load_arrays


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self._reduced = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self._reduced


def load(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    return load_arrays(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("old", [False, True], ids=["numpy 2", "numpy 1"])
def test_arrays_and_containers_come_through(protocol: int, old: bool, tmp_path: Path) -> None:
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype=">i2")[::2],
        np.array(["ä", "bc"]),
        np.array([b"x", b"yz"]),
        np.array([True, False]),
        np.array(2.5, dtype=np.float16),
    ]
    value = (arrays, {"a": [1, 2.5, None, "s"], "b": (np.str_("é"), np.int64(7))})
    data = pickle.dumps(value, protocol)
    if old and protocol < 4:
        data = data.replace(b"numpy._core", b"numpy.core")
    elif old:
        data = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        data = data.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
        # Frames carry their length; without them the shortened names need no further repair.
        data = b"".join(
            data[at : end]
            for (op, _, at), end in _spans(data)
            if op.name != "FRAME"
        )  # fmt: skip
    loaded, others = load(tmp_path, data)
    for expected, found in zip(arrays, loaded, strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, strict=True)
        assert not found.flags.writeable
    assert others == {"a": [1, 2.5, None, "s"], "b": ("é", 7)}
    assert [type(item) for item in others["b"]] == [str, int]


def _spans(data: bytes) -> list[tuple[Any, int]]:
    found = list(pickletools.genops(data))
    ends = [at or 0 for _, _, at in found[1:]] + [len(data)]
    return list(zip(found, ends, strict=True))


_RECONSTRUCT: Any = np.zeros(1).__reduce__()[0]
_OBJECTS = np.array([1, "a"], dtype=object)
_RECORD = np.zeros(2, dtype=[("a", "f4")])

MALICIOUS = {
    "os.system": Calls(os.system, "touch executed"),
    "builtins.eval": Calls(builtins.eval, "open('executed', 'w')"),
    "builtins.getattr": Calls(getattr, 1, "real"),
    "open": Calls(open, "executed", "w"),
    "np.load": Calls(np.load, "executed", None, True),
    "np.memmap": Calls(np.memmap, "executed", "u1", "w+", 0, (1,)),
    "functools.partial": Calls(functools.partial, len),
    "codecs.encode": Calls(codecs.encode, "x", "rot13"),
    "codecs.decode": Calls(codecs.decode, b"x", "zip"),
    "a class of ours": Calls(SourceError, "x"),
    "object array": _OBJECTS,
    "object array inside": [_OBJECTS.reshape(1, 2)],
    "object array of a call": np.array([Calls(os.system, "touch executed")], dtype=object),
    "object dtype over raw bytes": Calls(
        _RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("O"), False, b"\x41" * 8)
    ),
    "structured array": _RECORD,
    "structured scalar": _RECORD[0],
    "dates": np.zeros(2, "M8[s]"),
    "masked array": np.ma.masked_array([1.0, 2.0], [True, False]),
    "matrix subclass": Calls(np.ndarray, (2,), "O"),
    "shape beyond the data": Calls(_RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (9,), np.dtype("f8"), False, b"")),
    "negative shape": Calls(_RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1,), np.dtype("f8"), False, bytes(8))),
    "no state": Calls(_RECONSTRUCT, np.ndarray, (0,), b"b"),
    "a bare function": os.system,
    "a bare dtype": np.dtype("f8"),
    "a set": {1, 2},
    "complex number": 1j,
}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", list(MALICIOUS))
def test_anything_else_is_refused_and_not_run(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps((np.zeros(2), MALICIOUS[name]), protocol)
    with pytest.raises(SourceError, match=r"a\.pkl: cannot be read as a pickle of arrays: .+"):
        load(tmp_path, data)
    assert not Path("executed").exists()


def test_handmade_opcodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = [
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"(S'touch executed'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch executed'\no.",
        b"cbuiltins\neval\n.",
        b"cnumpy\ndtype.type.mro\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.",
        b"Pexternal\n.",
        b"K\x01Q.",
        b"\x80\x05\x97.",
        b"\x82\x01.",
        b"cnumpy\nndarray\n(dS'__class__'\nI1\nsb.",
        b"cnumpy\ndtype\nN}S'__code__'\nI1\ns\x86b.",
        b"]\x94h\x00a.",
        b"",
        b".",
        b"\x80\xff.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ]
    for program in programs:
        with pytest.raises(SourceError):
            load(tmp_path, program)
    assert not Path("executed").exists()


def test_what_a_pickle_is_handed_cannot_be_changed_for_the_next(tmp_path: Path) -> None:
    # BUILD with a dictionary writes into the function that the name resolved to.
    with pytest.raises(SourceError):
        load(tmp_path, b"cnumpy\ndtype\n}S'poisoned'\nI1\nsb.")
    (array,) = load(tmp_path, pickle.dumps((np.arange(3.0),)))
    assert array.tolist() == [0, 1, 2]


SOUND = pickle.dumps((np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3)), ["a", np.str_("b")]), 4)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(SOUND[: data.draw(st.integers(0, len(SOUND)))])
    for at in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=3)):
        if damaged:
            damaged[at] = data.draw(st.integers(0, 255))
    try:
        load(tmp_path, bytes(damaged))
    except SourceError:
        return


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.pkl: cannot be read"):
        load_arrays(tmp_path / "none.pkl")
