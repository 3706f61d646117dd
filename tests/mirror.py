"""What an index should hold after changes, kept beside it: and whether it does, by brute force."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from index import Gaussians, IndexDirectory, LocalSearcher
from index.manifest import IndexKind
from tests.approximate import assert_scores_are_exact, recall
from tests.conftest import random_gaussians, write_corpus
from tests.rankings import assert_exact, exact_scores

LEAST_RECALL = 0.95


class Mirror:
    """Documents by id: mean and variance (k,) float32, and text."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.documents: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], str]] = {}

    def corpus(self, path: Path, ids: Sequence[str], seed: int, *, center: float = 0.0) -> Path:
        """A corpus of new documents with these ids, which the mirror has from now on."""
        gaussians = random_gaussians(len(ids), self.k, seed, center=center)
        texts = [f"{name} of {seed}" for name in ids]
        both = zip(gaussians.means.numpy(), gaussians.variances.numpy(), texts, strict=True)
        self.documents |= zip(ids, both, strict=True)
        return write_corpus(path, gaussians, ids, text=texts)

    def delete(self, ids: Iterable[str]) -> None:
        for name in ids:
            del self.documents[name]

    @property
    def gaussians(self) -> Gaussians:
        means, variances, _ = zip(*self.documents.values(), strict=True)
        return Gaussians(torch.from_numpy(np.stack(means)), torch.from_numpy(np.stack(variances)))

    def check(self, directory: IndexDirectory, *, queries: int = 40, seed: int = 99) -> LocalSearcher:
        """The live generation is whole, and finds these documents and no others."""
        directory.verify()
        searcher = LocalSearcher(directory)
        assert len(searcher) == len(self.documents)
        asked = random_gaussians(queries, self.k, seed)
        if not self.documents:
            assert all(ranking.ids == [] for ranking in searcher.search(asked, 10))
            return searcher
        ids, exact = list(self.documents), exact_scores(asked, self.gaussians)
        assert_exact(searcher.search(asked, 10, exact=True), exact, ids, 10)
        found = searcher.search(asked, 10)
        if searcher.manifest.kind is IndexKind.FLAT:
            assert_exact(found, exact, ids, 10)
        else:
            assert_scores_are_exact(found, exact, ids)
            assert recall(found, exact, min(10, len(ids))) >= LEAST_RECALL
        (everything,) = searcher.search(asked[:1], len(ids) + 10, exact=True)
        assert set(everything.ids) == set(ids)
        payloads = searcher.payloads(everything.documents)
        assert [each.get("text") for each in payloads] == [self.documents[name][2] for name in everything.ids]
        for name in ids[:: max(1, len(ids) // 20)]:
            document = searcher.document(name)
            np.testing.assert_array_equal(document.gaussian.means[0].numpy(), self.documents[name][0])
            np.testing.assert_array_equal(document.gaussian.variances[0].numpy(), self.documents[name][1])
        return searcher
