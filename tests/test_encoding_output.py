"""What encoders write and where: precisions, devices, preallocated memory, chunks, and vectors that do not fit."""

import weakref
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal
from weakref import WeakSet

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import index.encoding
from index import Encoding, Gaussians, Standardisation, encode_documents, encode_queries
from index.errors import InvalidGaussiansError
from index.standardisation import CHUNK_ELEMENTS
from tests.conftest import random_gaussians
from tests.oracles import Encode, in_float64, mixed_gaussians

both_sides = pytest.mark.parametrize("encode", [encode_documents, encode_queries])
every_encoding = pytest.mark.parametrize("encoding", Encoding)
FITTED = Standardisation(torch.linspace(-1, 1, 5).double(), torch.linspace(0.5, 3, 5).double())


@both_sides
@every_encoding
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_precision_in(encode: Encode, encoding: Encoding, dtype: torch.dtype) -> None:
    """Whatever comes in is computed in float64 and rounded once: float32 out, the float64 vectors rounded."""
    gaussians = random_gaussians(7, 5).to(dtype=dtype)
    vectors = encode(gaussians, encoding, FITTED)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, in_float64(encode, gaussians.to(dtype=torch.float64), encoding, FITTED).float())


@both_sides
@every_encoding
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_writes_into_out(encode: Encode, encoding: Encoding, dtype: torch.dtype) -> None:
    """`out` is returned, holds the vectors in its own precision, and nothing beside it is touched."""
    gaussians = random_gaussians(7, 5)
    width = encoding.width(5)
    # Every other row and the middle columns of something larger: strided both ways, as a column of a table would be.
    table = torch.full((14, width + 2), 77.0, dtype=dtype)
    out = table[::2, 1:-1]
    assert encode(gaussians, encoding, FITTED, out=out) is out
    assert torch.equal(out, in_float64(encode, gaussians, encoding, FITTED).to(dtype))
    assert torch.equal(table[1::2], torch.full((7, width + 2), 77.0, dtype=dtype))
    assert bool((table[:, [0, -1]] == 77.0).all())


@both_sides
@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty(3, 16), r"\(3, 16\).*\(4, 16\)"),
        (torch.empty(4, 15), r"\(4, 15\).*\(4, 16\)"),
        (torch.empty(64), r"\(64,\).*\(4, 16\)"),
        (torch.empty(4, 16, dtype=torch.int32), r"torch\.int32.*floating point"),
    ],
    ids=["rows", "width", "flat", "integers"],
)
def test_refuses_another_out(encode: Encode, out: Tensor, message: str) -> None:
    """Another shape, or numbers that would be cut to integers in silence."""
    with pytest.raises(ValueError, match=message):
        encode(random_gaussians(4, 5), Encoding.SIMPLIFIED, out=out)


@both_sides
@every_encoding
def test_leaves_its_input_alone(encode: Encode, encoding: Encoding) -> None:
    """Inside, everything is computed in place; not in the caller's float64 tensors, though."""
    gaussians = random_gaussians(6, 5).to(dtype=torch.float64)
    means, variances = gaussians.means.clone(), gaussians.variances.clone()
    encode(gaussians, encoding)
    assert torch.equal(gaussians.means, means)
    assert torch.equal(gaussians.variances, variances)


@both_sides
@every_encoding
def test_no_rows(encode: Encode, encoding: Encoding) -> None:
    """An empty batch has vectors of the right width."""
    assert encode(random_gaussians(3, 5)[:0], encoding).shape == (0, encoding.width(5))


@both_sides
def test_another_k_than_the_standardisations(encode: Encode) -> None:
    """Both numbers are in the message."""
    with pytest.raises(InvalidGaussiansError, match="the Gaussians have 4 dimensions; the index holds 5"):
        encode(random_gaussians(2, 4), Encoding.SIMPLIFIED, FITTED)


@both_sides
def test_records_no_graph(encode: Encode) -> None:
    """Gaussians straight from a model in training give plain vectors, which NumPy and FAISS take."""
    weights = torch.ones(3, 5, requires_grad=True)
    gaussians = Gaussians(2 * weights, weights.exp())
    out = torch.empty(3, 16)
    for vectors in (encode(gaussians, Encoding.SIMPLIFIED), encode(gaussians, Encoding.SIMPLIFIED, out=out)):
        assert not vectors.requires_grad
        assert vectors.numpy().shape == (3, 16)


@both_sides
@given(gaussians=mixed_gaussians(), encoding=st.sampled_from(Encoding), chunk=st.integers(1, 6000))
def test_chunks_change_nothing(encode: Encode, gaussians: Gaussians, encoding: Encoding, chunk: int) -> None:
    """Rows encoded one by one, a few at a time and all at once are equal to the last bit."""
    whole = in_float64(encode, gaussians, encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index.encoding, "CHUNK_ELEMENTS", chunk)
        assert torch.equal(in_float64(encode, gaussians, encoding), whole)


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every tensor storage that an operation makes, from then until it is freed."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen = WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.live -= size


@both_sides
def test_memory_is_bounded(encode: Encode) -> None:
    """50,000 x 64 into a preallocated `out` take six chunks beyond it: 1.5 MiB, where one copy of the means is 24."""
    rows, k = 50_000, 64
    gaussians = Gaussians(torch.zeros(1, k).expand(rows, k), torch.ones(1, k).expand(rows, k))
    out = torch.empty(rows, Encoding.SIMPLIFIED.width(k))
    with LiveMemory(gaussians.means, gaussians.variances, out) as memory:
        encode(gaussians, Encoding.SIMPLIFIED, out=out)
    chunk = 8 * CHUNK_ELEMENTS
    assert 2 * chunk <= memory.peak <= 6 * chunk
    assert memory.live == 0
    assert torch.equal(out[0], out[-1])


def wild(width: Literal[32, 64]) -> st.SearchStrategy[Gaussians]:
    """Any valid Gaussians at all of a precision, denormal variances and the largest means included."""
    dtype, shape = np.dtype(f"f{width // 8}"), (3, 2)
    means = arrays(dtype, shape, elements=st.floats(width=width, allow_nan=False, allow_infinity=False))
    variances = arrays(dtype, shape, elements=st.floats(0, width=width, exclude_min=True, allow_infinity=False))
    return st.builds(Gaussians.from_arrays, means, variances)


def largest_components(encode: Encode, means: list[float], variances: list[float]) -> list[Fraction]:
    """The sizes of a simplified vector's components, exact but for g's logarithms: at most 745 each, of 3.4e38."""
    pairs = [(Fraction(mean), Fraction(variance)) for mean, variance in zip(means, variances, strict=True)]
    if encode is encode_queries:
        return [size for mean, variance in pairs for size in (abs(mean), mean**2, variance)]
    g = sum((mean**2 / variance for mean, variance in pairs), Fraction(0))
    return [g, *(size for mean, variance in pairs for size in (1 / variance, 2 * abs(mean) / variance))]


@both_sides
@given(gaussians=wild(32) | wild(64))
def test_finite_or_refused(encode: Encode, gaussians: Gaussians) -> None:
    """For all valid Gaussians: vectors that are finite, or an error naming the first row that float32 cannot hold."""
    limit = Fraction(float(np.finfo(np.float32).max))
    rows = zip(gaussians.means.tolist(), gaussians.variances.tolist(), strict=True)
    sizes = [[size / limit for size in largest_components(encode, *row)] for row in rows]
    # Rounding decides about what is this near to the limit.
    assume(all(abs(size - 1) > Fraction(1, 10**6) for row in sizes for size in row))
    unfit = next((row for row, of_row in enumerate(sizes) if max(of_row) > 1), None)
    if unfit is None:
        assert bool(torch.isfinite(encode(gaussians, Encoding.SIMPLIFIED)).all())
        return
    with pytest.raises(
        InvalidGaussiansError, match=rf"^row {unfit}: column \d+ of its vector does not fit torch.float32"
    ):
        encode(gaussians, Encoding.SIMPLIFIED)


@pytest.mark.parametrize(
    ("encode", "mean", "variance", "dtype", "column", "limit"),
    [
        # -1/v is -1e39 in columns 1 + 1 and, folded away, k later; 3.4e38 is the most that float32 holds.
        (encode_documents, 0.0, 1e-39, torch.float32, 2, "3.4e+38"),
        # 2m/v is 2e40, and m^2/v = 1e62 makes g, which comes first, too large as well.
        (encode_documents, 1e22, 1e-18, torch.float32, 0, "3.4e+38"),
        # m^2 is 1e40, in column 1 + k + 1.
        (encode_queries, 1e20, 1.0, torch.float32, 5, "3.4e+38"),
        # 1/v is 1e5; float16 ends at 65504, which is why vectors are not stored in it.
        (encode_documents, 0.0, 1e-5, torch.float16, 2, "6.55e+04"),
    ],
    ids=["inverse", "constant", "square", "float16"],
)
def test_unfit_row_is_named(
    encode: Encode, mean: float, variance: float, dtype: torch.dtype, column: int, limit: str
) -> None:
    """Row, column, precision and limit, and the row counted through all chunks."""
    means, variances = np.zeros((40_000, 3)), np.ones((40_000, 3))
    means[39_998, 1], variances[39_998, 1] = mean, variance
    with pytest.raises(InvalidGaussiansError) as caught:
        encode(Gaussians.from_arrays(means, variances), Encoding.SIMPLIFIED, out=torch.empty(40_000, 10, dtype=dtype))
    assert caught.value.row == 39_998
    assert str(caught.value) == (
        f"row 39998: column {column} of its vector does not fit {dtype}: the variance is too far from the corpus's, "
        f"or the mean too many deviations away (limit {limit})"
    )


@pytest.mark.gpu
@both_sides
@every_encoding
def test_on_a_gpu(cuda: torch.device, monkeypatch: pytest.MonkeyPatch, encode: Encode, encoding: Encoding) -> None:
    """Vectors stay on the Gaussians' device and are the CPU's but for the last bit, whatever the chunks."""
    gaussians = random_gaussians(1000, 255)
    by = Standardisation(torch.linspace(-1, 1, 255).double(), torch.linspace(0.5, 3, 255).double())
    expected = encode(gaussians, encoding, by)
    for elements in (index.encoding.GPU_CHUNK_ELEMENTS, 300 * 255):
        monkeypatch.setattr(index.encoding, "GPU_CHUNK_ELEMENTS", elements)
        on_gpu = encode(gaussians.to(cuda), encoding, by)
        assert on_gpu.device == cuda
        torch.testing.assert_close(on_gpu.cpu(), expected, rtol=2e-7, atol=1e-9)


@pytest.mark.gpu
@both_sides
def test_from_a_gpu_into_host_memory(cuda: torch.device, encode: Encode) -> None:
    """A build encodes on the GPU and writes straight into the host's memory."""
    gaussians, out = random_gaussians(1000, 5), torch.empty(1000, 16)
    encode(gaussians.to(cuda), Encoding.SIMPLIFIED, out=out)
    torch.testing.assert_close(out, encode(gaussians, Encoding.SIMPLIFIED), rtol=2e-7, atol=1e-9)
