"""Clustering by KL against naive references, and the scan of lists against the scan of everything."""

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import index.clustering
from index import Encoding, Gaussians, LocalSearcher, Standardisation, encode_documents, encode_queries
from index.clustering import cluster, nearest_lists
from index.codes_record import CodesRecord, ListsRecord
from index.errors import InvalidOptionError
from index.generation_files import structure_file
from index.lists import Lists
from index.records import FileEntry
from tests.conftest import MakeIndex, Serve, random_gaussians
from tests.rankings import assert_exact, exact_scores, ids_of

CPU = torch.device("cpu")


def divergences(documents: Gaussians, means: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """KL(document || centroid), (n, lists), by torch."""

    mine = Normal(documents.means[:, None].double(), documents.variances[:, None].double().sqrt())
    return kl_divergence(mine, Normal(means[None].double(), variances[None].double().sqrt())).sum(dim=2)


def folded(documents: Gaussians) -> torch.Tensor:
    return encode_queries(documents, Encoding.FOLDED, Standardisation.identity(documents.k))


def naive(documents: Gaussians, chosen: torch.Tensor, iterations: int) -> tuple[torch.Tensor, list[float]]:
    """Hard clustering as the definition has it: the lists, and the sum of divergences after each step."""
    means, variances = documents.means[chosen].double(), documents.variances[chosen].double()
    sums = []
    for _ in range(iterations):
        apart = divergences(documents, means, variances)
        members = apart.argmin(dim=1)
        sums.append(float(apart.min(dim=1).values.sum()))
        for number in range(len(chosen)):
            its = members == number
            mixture = documents.means[its].double()
            means[number] = mixture.mean(dim=0)
            variances[number] = (documents.variances[its].double() + mixture**2).mean(dim=0) - means[number] ** 2
    return divergences(documents, means, variances).argmin(dim=1), sums


def test_clustering_is_what_its_definition_says() -> None:
    documents = random_gaussians(600, 5)
    centroids = cluster(documents, 8, Standardisation.identity(5), seed=3, device=CPU)
    chosen = torch.randperm(600, generator=torch.Generator().manual_seed(3))[:8]
    expected, sums = naive(documents, chosen, index.clustering.ITERATIONS)
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(sums))
    # float32 against float64: a document in the middle between two may go to either.
    assert float((nearest_lists(folded(documents), centroids) == expected).double().mean()) > 0.99


def test_the_nearest_list_is_that_of_the_least_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, centers = random_gaussians(300, 6), random_gaussians(20, 6, seed=1)
    vectors = encode_documents(centers, Encoding.FOLDED, Standardisation.identity(6))
    expected = divergences(documents, centers.means, centers.variances).argmin(dim=1)
    monkeypatch.setattr(index.clustering, "COMPARED_NUMBERS", 1000)
    assert torch.equal(nearest_lists(folded(documents), vectors), expected)


@pytest.mark.parametrize("lists", [1, 5, 40])
def test_equal_and_few_documents_have_lists(lists: int) -> None:
    equal = random_gaussians(1, 3)[torch.zeros(5, dtype=torch.int64)]
    centroids = cluster(equal, lists, Standardisation.identity(3), seed=0, device=CPU)
    assert centroids.shape == (min(5, lists), 7)
    assert bool(centroids.isfinite().all())
    assert nearest_lists(folded(equal), centroids).max() < len(centroids)


def test_clustering_is_the_same_each_time() -> None:
    documents = random_gaussians(500, 4)
    one, other = (cluster(documents, 16, Standardisation.identity(4), seed=9, device=CPU) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.gpu
def test_clustering_on_a_gpu_finds_the_same_lists(cuda: torch.device) -> None:
    documents = random_gaussians(2000, 8)
    here, there = (cluster(documents, 16, Standardisation.identity(8), seed=1, device=each) for each in (CPU, cuda))
    vectors = folded(documents)
    same = nearest_lists(vectors, here) == nearest_lists(vectors.to(cuda), there.to(cuda)).cpu()
    assert float(same.double().mean()) > 0.99


@pytest.fixture(scope="module")
def documents() -> Gaussians:
    return random_gaussians(3000, 12, seed=4)


def test_the_lists_that_are_scanned_are_those_whose_centroids_are_nearest(
    make_index: MakeIndex, documents: Gaussians
) -> None:
    """With candidates enough for all of their documents, what is found is the best of exactly these."""
    directory = make_index(documents, kind="ivf-fastscan", lists=40, segment_docs=700)
    searcher = LocalSearcher(directory)
    codes = searcher.manifest.codes
    assert codes is not None
    assert codes.lists is not None
    lists = Lists.from_bytes(structure_file(directory, codes.lists).contents(codes.lists.file.bytes))
    queries = random_gaussians(30, 12, seed=6)
    vectors = encode_queries(queries, Encoding.FOLDED, searcher.manifest.standardisation.restore())
    nearest = (vectors @ torch.from_numpy(lists.centroids).T).topk(5, dim=1).indices.numpy()
    exact = exact_scores(queries, documents)
    for row, its in enumerate(nearest):
        allowed = np.isin(lists.members, its)
        assert allowed.sum() > 10
        scores = np.where(allowed, exact[row], -np.inf)
        (found,) = searcher.search(queries[row : row + 1], 10, candidates=3000, nprobe=5)
        assert found.ids == [f"d{number}" for number in np.argsort(-scores)[:10]]


@pytest.mark.parametrize(
    ("nprobe", "top_k", "expected"),
    [
        ([[10, 8]], 5, 8),
        ([[10, 8]], 1000, 8),
        ([[10, 8], [100, 16]], 10, 8),
        ([[10, 8], [100, 16]], 100, 16),
        # As it grew between the two: twice as many for ten times the results.
        ([[10, 8], [100, 16]], 1000, 32),
        ([[10, 8], [100, 90]], 1000, 100),
    ],
)
def test_lists_for_other_numbers_of_results(nprobe: list[list[int]], top_k: int, expected: int) -> None:
    entry, name = FileEntry(bytes=1, blake3="0" * 64), "0" * 12 + "-00000001-00000.safetensors"
    codes = CodesRecord(
        codebook=name,
        file=entry,
        code_bytes=9,
        dimensions=9,
        candidates=[[10, 10]],
        breadth=1.0,
        lists=ListsRecord(name=name, file=entry, segments=1, lists=100, nprobe=nprobe, documents=3000),
    )
    assert codes.nprobe_for(top_k) == expected
    # The best of fewer documents are in as many lists as more of the best of all; no more documents need fewer.
    assert codes.nprobe_for(top_k, among=3000) == codes.nprobe_for(top_k, among=9000) == expected
    assert codes.nprobe_for(top_k, among=300) == codes.nprobe_for(10 * top_k)
    assert codes.nprobe_for(top_k, among=0) == codes.nprobe_for(3000 * top_k)


def test_every_list_is_everything(make_index: MakeIndex, documents: Gaussians) -> None:
    searcher = LocalSearcher(make_index(documents, kind="ivf-fastscan"))
    queries = random_gaussians(20, 12, seed=6)
    found = searcher.search(queries, 10, candidates=3000, nprobe=10**6)
    assert_exact(found, exact_scores(queries, documents), ids_of(3000), 10)


def test_lists_and_nprobe_by_hand(make_index: MakeIndex, documents: Gaussians) -> None:
    manifest = make_index(documents, kind="ivf-fastscan", lists=25, nprobe=3).manifest()
    assert manifest.codes is not None
    assert manifest.codes.lists is not None
    assert (manifest.codes.lists.lists, manifest.codes.lists.nprobe) == (25, [[10, 3]])
    assert manifest.measured_recall is not None
    assert manifest.measured_recall.recall < 0.98
    # However many documents are wanted: it was given as a number of lists.
    assert [manifest.codes.nprobe_for(top_k) for top_k in (1, 10, 100, 1000)] == [3, 3, 3, 3]
    both = make_index(documents, name="both", kind="ivf-fastscan", nprobe=3, candidates=15).manifest()
    assert both.codes is not None
    assert both.codes.candidates == [[10, 15]]


def test_more_lists_than_documents_are_as_many(make_index: MakeIndex) -> None:
    documents = random_gaussians(100, 4)
    searcher = LocalSearcher(make_index(documents, kind="ivf-fastscan", lists=1000))
    codes = searcher.manifest.codes
    assert codes is None or (codes.lists is not None and codes.lists.lists <= 100)
    found = searcher.search(documents[:5], 100)
    assert all(len(ranking.ids) == 100 for ranking in found)


def test_nprobe_where_there_are_no_lists_is_refused(make_index: MakeIndex, serve: Serve, documents: Gaussians) -> None:
    searcher = LocalSearcher(make_index(documents, name="graph", kind="hnsw"))
    with pytest.raises(InvalidOptionError, match="nprobe is 3, but an index of kind hnsw has no lists"):
        searcher.search(documents[:1], 5, nprobe=3)
    listed = make_index(documents, name="lists", kind="ivf-fastscan")
    with pytest.raises(InvalidOptionError, match="nprobe is 0; it must be at least 1"):
        LocalSearcher(listed).search(documents[:1], 5, nprobe=0)
    body = {"mean": documents.means[0].tolist(), "variance": documents.variances[0].tolist()}
    client = serve(listed)
    assert client.post("/v1/search", body | {"nprobe": 1, "candidates": 10}).status_code == 200
    refused = client.post("/v1/search", body | {"nprobe": 10_001})
    assert (refused.status_code, refused.json()["detail"]) == (422, "nprobe is 10001; the limit is 10000")
    described = client.get("/v1/index").json()["codes"]["lists"]
    assert described["lists"] == round(4 * 3000**0.5)
    flat = serve(make_index(documents, name="flat"))
    refused = flat.post("/v1/search", body | {"nprobe": 3})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_option")
