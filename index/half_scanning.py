"""The scan of kind flat in bfloat16, by torch: half the bytes, for processors and GPUs that multiply matrices of it.

Results are as exact as those of the float32 scan, and proved in the same way: by an upper bound of every score, which
is one more dimension. With T as in index.projection, and d = T (f_d - c), q = T^-1 f_q, the score <q, d> of a document
is known from the rounded q' and d' up to

    <q, d> - <q', d'> = <q, d - d'> + <q - q', d'>  <=  |q| (|d - d'| + u |d'|),      u = 2^-8,

because rounding changes no number by more than its u-th part (Cauchy & Schwarz for the rest). So documents get |d - d'|
+ u |d'| as a last number and queries |q|, both rounded up, and the inner product is an upper bound. The best are taken
by it: whatever is not among them scores at most what the last of them may. Where q has no preferred direction, as it
does not after T, that is a fraction of a deviation of a query's scores, and some dozen candidates more than are wanted
lie as far apart.
"""

import functools
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from index.cores import available_cores
from index.documents import GaussianStore, Numbers
from index.encoding import encode_documents, encode_queries, negative_kl
from index.errors import CorruptIndexError, InvalidGaussiansError
from index.gaussians import Gaussians
from index.projection import query_metric
from index.scanning import SCANNED, Ceilings, Found, merge, piece
from index.standardisation import Standardisation

__all__ = ["HalfScanner", "bfloat16_is_faster"]

SAMPLE = 8192
"""Documents that stand for what queries look like, from which T is made."""
SEED = 2023
UNIT = 2.0**-8
"""The unit roundoff of bfloat16, to nearest."""
SLACK = 1e-9
"""What float64 may lose on the way, T's condition being at most some ten thousand."""
BLOCK_ROWS = 1 << 16
"""Documents scanned at a time: their scores for 128 queries take 16 MiB."""
GPU_SCORES = 1 << 29
"""Scores that a GPU computes at a time, 1 GiB of them: whoever fetches them block by block waits for each block."""
GROUP = 64
"""Documents of which, in looking for the best, the best one is looked at first."""
ENCODED_ROWS = 1 << 13
COMPARED_ROWS, COMPARED_QUERIES, COMPARED_TIMES = 1 << 14, (1, 32), 5


class HalfScanner:
    """Documents in bfloat16, in memory or on a GPU, 2 (2k+2) bytes each, or a few more: matrices whose rows do not
    begin where 16 bytes do are multiplied by slower programs. Safe to call from several threads.

    `margin` is how many documents beyond those wanted a first scan should find.
    """

    margin = 90

    def __init__(
        self, store: GaussianStore, standardisation: Standardisation, device: torch.device, threads: int | None
    ) -> None:
        self.device, self._standardisation = device, standardisation
        # Parts of a sum must be added in float32, too, on a GPU that shares it out.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._threads = threads or available_cores()
        self._center, root, self._inverse = _metric(store, standardisation)
        width = SCANNED.width(store.k)
        self._rows = torch.zeros(len(store), _padded(width + 1), dtype=torch.bfloat16, device=device)
        largest = float(torch.linalg.matrix_norm(root, 2))
        start = 0
        for vectors in _encoded(store, standardisation):
            rows = self._rows[start : start + len(vectors)]
            centred = vectors - self._center
            points = centred @ root
            rounded = points.to(torch.bfloat16)
            error = (points - rounded.double()).norm(dim=1) + 1.01 * (UNIT + _summing(width)) * points.norm(dim=1)
            rows[:, :width] = rounded.to(device)
            rows[:, width] = _up(error + SLACK * largest * centred.norm(dim=1)).to(device)
            start += len(vectors)

    def scan(self, queries: Gaussians, count: int) -> tuple[Numbers, Ceilings]:
        """As Scanner.scan."""
        queries = queries.to("cpu")
        vectors = torch.empty(len(queries), SCANNED.width(queries.k), dtype=torch.float64)
        encode_queries(queries, SCANNED, self._standardisation, out=vectors)
        points = vectors @ self._inverse
        width = points.shape[1]
        asked = torch.zeros(len(points), _padded(width + 1), dtype=torch.bfloat16)
        asked[:, :width] = points.to(torch.bfloat16)
        asked[:, width] = _up(points.norm(dim=1) * (1 + SLACK))
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            _, numbers, cutoffs = merge(list(self._found(asked.to(self.device), count)), count)
        finally:
            torch.set_num_threads(before)
        # A product is rounded to bfloat16 itself; and what was subtracted from documents is the same for all of them.
        bounds = torch.from_numpy(cutoffs.astype(np.float64))
        # Two products, since the bound of no document is minus infinity.
        bounds = torch.maximum(bounds * (1 + 1.01 * UNIT), bounds * (1 - 1.01 * UNIT)) + vectors @ self._center
        return numbers, negative_kl(bounds[:, None], queries, SCANNED, self._standardisation)[:, 0].numpy()

    def _found(self, asked: Tensor, count: int) -> Iterator[Found]:
        rows = BLOCK_ROWS if self.device.type == "cpu" else max(BLOCK_ROWS, GPU_SCORES // max(1, len(asked)))
        for start in range(0, len(self._rows), rows):
            block = self._rows[start : start + rows]
            scores, local = largest(asked @ block.T, min(count, len(block)))
            yield piece(scores.cpu().numpy(), local.cpu().numpy(), start, len(block))


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of scores (b, n), descending, in float32, and their columns; both (b, count).

    Whatever is among them is in one of the `count` groups whose largest are largest, so that no other group is looked
    at twice: on a GPU, sorting takes longer than multiplying.
    """
    groups = scores.shape[1] // GROUP
    if groups <= 2 * count:
        best = scores.float().topk(count, dim=1)
        return best.values, best.indices
    whole = groups * GROUP
    inside = torch.arange(GROUP, device=scores.device)
    chosen = scores[:, :whole].view(-1, groups, GROUP).amax(dim=2).topk(count, dim=1, sorted=False).indices
    columns = (chosen[:, :, None] * GROUP + inside).flatten(1)
    rest = torch.arange(whole, scores.shape[1], device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, rest], dim=1)
    best = scores.gather(1, columns).float().topk(count, dim=1)
    return best.values, columns.gather(1, best.indices)


def bfloat16_is_faster(device: torch.device, k: int) -> bool:
    """Whether this machine multiplies queries with documents of k dimensions faster in bfloat16 than in float32, one
    alone and many: measured, in some milliseconds."""
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # Without instructions for it takes ten times as long, and so would the measurement.
        return False
    rows = torch.randn(COMPARED_ROWS, _padded(SCANNED.width(k) + 1), device=device)
    halves = rows.to(torch.bfloat16)
    return all(_seconds(halves[:queries], halves) < _seconds(rows[:queries], rows) for queries in COMPARED_QUERIES)


def _seconds(queries: Tensor, rows: Tensor) -> float:
    fastest = float("inf")
    for _ in range(COMPARED_TIMES):
        started = time.perf_counter()
        # Fetched, because a GPU would otherwise only have begun.
        float((queries @ rows.T).sum())
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def _metric(store: GaussianStore, standardisation: Standardisation) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of folded documents (w,), T and its inverse (w, w), by a sample of the documents, float64."""
    drawn = np.random.default_rng(SEED).permutation(len(store))[:SAMPLE].astype(np.int64)
    sample = store.batch(np.sort(drawn))
    documents, queries = (
        encode(sample, SCANNED, standardisation, out=torch.empty(len(sample), SCANNED.width(store.k)).double())
        for encode in (encode_documents, encode_queries)
    )
    center, _, root, inverse = query_metric(documents, queries)
    return center, root, inverse


def _encoded(store: GaussianStore, standardisation: Standardisation) -> Iterator[Tensor]:
    """All documents' folded vectors, (any, w) float64, in order."""
    for block in store.batches(ENCODED_ROWS):
        out = torch.empty(len(block), SCANNED.width(store.k), dtype=torch.float64)
        try:
            yield encode_documents(block, SCANNED, standardisation, out=out)
        except InvalidGaussiansError as error:
            # No build has written it.
            raise CorruptIndexError(f"gaussians.npy: {error}") from error


def _padded(width: int) -> int:
    """So many numbers of bfloat16, up to a multiple of 16 bytes."""
    return -(-width // 8) * 8


@functools.cache
def _summing(width: int) -> float:
    """What float32 may lose in summing so many products, over the norms' product: gamma of Higham, 2002, Eq. 3.5."""
    roundings = (width + 2) * 2.0**-24
    return roundings / (1 - roundings)


def _up(values: Tensor) -> Tensor:
    """Numbers that are not negative in bfloat16, none smaller than it was."""
    return (values * (1 + 2 * UNIT)).to(torch.bfloat16)
