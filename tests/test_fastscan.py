"""Kind fastscan: what is chosen, by hand and by the build, and what is on disk."""

import json
from pathlib import Path

import numpy as np
import pytest

import index.build_codes
import index.build_fit
import index.builder
import index.calibration
from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.codes_record import CodesRecord
from index.errors import BuildError, CorruptIndexError, SourceError
from index.manifest import IndexKind, Manifest
from index.records import FileEntry
from tests.approximate import all_equal, assert_scores_are_exact, stopped_build
from tests.conftest import MakeIndex, Serve, random_gaussians, write_corpus
from tests.rankings import assert_exact, exact_scores, ids_of
from tests.serving import wait_until

FASTSCAN = IndexKind.FASTSCAN


@pytest.mark.parametrize(
    ("n", "k", "top_k", "options"),
    [(3000, 1, 3000, {}), (100, 6, 100, {"code_bytes": 1}), (3000, 1, 2, {"code_bytes": 1, "candidates": 2})],
)
def test_documents_that_the_scan_leaves_out_are_found_where_they_are_wanted(
    make_index: MakeIndex, n: int, k: int, top_k: int, options: dict[str, int]
) -> None:
    """FAISS finds no document whose looked-up values are all the least, however many are asked for."""
    documents = random_gaussians(n, k)
    searcher = LocalSearcher(make_index(documents, kind="fastscan", **options))
    queries = documents[:40]
    found = searcher.search(queries, top_k)
    assert all(len(ranking.ids) == top_k for ranking in found)
    assert_scores_are_exact(found, exact_scores(queries, documents), ids_of(n))
    if top_k == n:
        assert_exact(found, exact_scores(queries, documents), ids_of(n), n)


def test_codes_that_say_nothing_find_something_all_the_same(make_index: MakeIndex) -> None:
    documents = all_equal()[:2000]
    searcher = LocalSearcher(make_index(documents, kind="fastscan", code_bytes=4, candidates=20))
    assert searcher.manifest.kind is FASTSCAN
    (ranking,) = searcher.search(random_gaussians(1, 4, seed=1), 5)
    assert len(set(ranking.ids)) == 5


def test_queries_that_see_no_difference_between_equal_documents_build_flat(
    make_index: MakeIndex, tmp_path: Path
) -> None:
    queries = write_corpus(tmp_path / "queries.parquet", random_gaussians(40, 4, seed=1))
    manifest = make_index(all_equal(), kind="fastscan", queries=queries).manifest()
    assert manifest.kind is IndexKind.FLAT


def test_more_dimensions_than_a_codebook_is_fitted_for_build_flat(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index.build_fit, "MOST_DIMENSIONS", 5)
    manifest = make_index(random_gaussians(100, 6), kind="fastscan").manifest()
    assert manifest.reason == (
        "asked for fastscan, but a codebook is fitted for k up to 5, and k is 6: flat instead, which is exact"
    )


def test_a_document_that_float32_cannot_hold_is_named(tmp_path: Path) -> None:
    documents = random_gaussians(300, 4)
    means, variances = documents.means.clone(), documents.variances.clone()
    variances[123] = 1e-38
    means[123] = 1e5
    corpus = write_corpus(tmp_path / "corpus.parquet", Gaussians(means, variances))
    directory = IndexDirectory(tmp_path / "index")
    with pytest.raises(SourceError, match=r"corpus\.parquet.* 123.*'d123'"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN))
    assert not directory.staging.exists()


def test_more_digits_are_tried_where_those_predicted_miss_the_target(
    make_index: MakeIndex, documents: Gaussians, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index.calibration.CandidateModel, "digits", lambda *_: 4)
    monkeypatch.setattr(index.build_codes, "MOST_CANDIDATES", 60)
    monkeypatch.setattr(index.calibration, "MOST_CANDIDATES", 60)
    directory = make_index(documents, kind="fastscan", segment_docs=600)
    manifest = directory.manifest()
    assert manifest.codes is not None
    assert manifest.codes.code_bytes > 4
    assert [path.name for path in directory.codebooks.iterdir()] == [manifest.codes.codebook]
    directory.verify()


def test_a_codebook_that_was_not_whole_is_fitted_anew(
    tmp_path: Path, documents: Gaussians, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    stopped_build(corpus, directory, BuildOptions(kind=FASTSCAN), monkeypatch, index.build_codes, "_ladder")
    (path,) = directory.codebooks.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    build_index([corpus], directory, BuildOptions(kind=FASTSCAN))
    assert path.read_bytes() == whole
    directory.verify()


def test_an_index_below_the_least_recall_is_not_called_up_to_date(tmp_path: Path, documents: Gaussians) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    few = BuildOptions(kind=FASTSCAN, target_recall=0.5)
    build_index([corpus], directory, few)
    with pytest.raises(BuildError, match="below --min-recall"):
        build_index([corpus], directory, few.model_copy(update={"min_recall": 0.95}))


def test_documents_that_are_all_equal_are_what_codes_cannot_tell_apart(make_index: MakeIndex) -> None:
    manifest = make_index(all_equal(), kind="fastscan").manifest()
    assert manifest.kind is IndexKind.FLAT
    assert manifest.codes is None


@pytest.fixture(scope="module")
def documents() -> Gaussians:
    return random_gaussians(2000, 12, seed=4)


def test_code_length_and_candidates_by_hand(make_index: MakeIndex, documents: Gaussians) -> None:
    manifest = make_index(documents, kind="fastscan", code_bytes=5, candidates=33, target_recall=0.5).manifest()
    assert manifest.codes is not None
    assert manifest.measured_recall is not None
    assert (manifest.codes.code_bytes, manifest.codes.candidates, manifest.measured_recall.candidates) == (
        5,
        [[10, 33]],
        33,
    )
    # Found are no more than it takes.
    assert 0.5 <= manifest.measured_recall.recall < 0.99
    assert 1 <= manifest.codes.breadth < 10


def test_a_higher_target_takes_more(make_index: MakeIndex, documents: Gaussians) -> None:
    found = {}
    for target in (0.5, 0.9, 0.999):
        codes = (
            make_index(documents, name=str(target), kind="fastscan", target_recall=target, code_bytes=8)
            .manifest()
            .codes
        )
        assert codes is not None
        found[target] = codes.candidates[0][1] * codes.breadth
    assert found[0.5] < found[0.9] < found[0.999]


def test_another_target_does_not_go_on_with_an_unfinished_build(
    tmp_path: Path, documents: Gaussians, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    stopped_build(corpus, directory, BuildOptions(kind=FASTSCAN), monkeypatch, index.build_codes, "_ladder")
    with pytest.raises(BuildError, match="another target_recall"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, target_recall=0.9))


def test_queries_must_be_of_the_corpuss_dimensions_and_four(tmp_path: Path, documents: Gaussians) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    other = write_corpus(tmp_path / "other.parquet", random_gaussians(10, 7))
    with pytest.raises(SourceError, match=r"other\.parquet has queries of 7 dimensions, .* have 12"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, queries=other))
    one = write_corpus(tmp_path / "one.parquet", random_gaussians(3, 12))
    with pytest.raises(SourceError, match=r"one\.parquet has 3 queries; at least 4"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, queries=one))
    with pytest.raises(SourceError, match="absent"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, queries=tmp_path / "absent.parquet"))


def test_a_codebook_that_is_damaged_or_gone_is_named(make_index: MakeIndex, documents: Gaussians) -> None:
    directory = make_index(documents, kind="fastscan")
    directory.verify()
    (path,) = directory.codebooks.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for use in (directory.verify, lambda: LocalSearcher(directory)):
        with pytest.raises(CorruptIndexError, match=rf"{path.name} does not match its checksum"):
            use()
    path.unlink()
    with pytest.raises(CorruptIndexError, match=rf"{path.name} is missing"):
        LocalSearcher(directory)


def test_codebooks_that_no_generation_needs_are_removed(tmp_path: Path, documents: Gaussians) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    for target in (0.9, 0.95, 0.99):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, target_recall=target))
    kept = [json.loads(path.read_text())["codes"]["codebook"] for path in directory.manifests.glob("*.json")]
    assert len(kept) == 2
    assert sorted(path.name for path in directory.codebooks.iterdir()) == sorted(kept)


@pytest.mark.parametrize(
    ("candidates", "top_k", "expected"),
    [
        ([[10, 80]], 1, 80),
        ([[10, 80]], 10, 80),
        ([[10, 80]], 25, 200),
        ([[10, 80], [100, 320]], 5, 80),
        ([[10, 80], [100, 320]], 100, 320),
        ([[10, 80], [100, 320]], 1000, 3200),
        # Halfway between, in orders of magnitude.
        ([[10, 100], [1000, 10000]], 100, 1000),
    ],
)
def test_candidates_for_other_numbers_of_results(candidates: list[list[int]], top_k: int, expected: int) -> None:
    entry = FileEntry(bytes=1, blake3="0" * 64)
    name = "0" * 12 + "-00000001-00064.safetensors"
    codes = CodesRecord(codebook=name, file=entry, code_bytes=32, dimensions=9, candidates=candidates, breadth=1.0)
    assert codes.candidates_for(top_k) == expected


def test_a_manifest_has_codes_if_and_only_if_its_kind_has(make_index: MakeIndex, documents: Gaussians) -> None:
    manifest = make_index(documents, kind="fastscan").manifest()
    for change in ({"kind": "flat"}, {"codes": None}, {"measured_recall": None}):
        with pytest.raises(ValueError, match="does not go with its codes"):
            Manifest.model_validate({**manifest.model_dump(mode="json"), **change}, strict=False)


def test_the_service_says_what_it_scans_and_answers_exactly_where_asked(
    make_index: MakeIndex, documents: Gaussians, serve: Serve
) -> None:
    directory = make_index(documents, kind="fastscan", code_bytes=4, candidates=20)
    client, searcher = serve(directory), LocalSearcher(directory)
    described = client.get("/v1/index").json()
    measured = directory.manifest().measured_recall
    assert measured is not None
    assert described["kind"] == "fastscan"
    assert described["measured_recall"] == measured.model_dump()
    assert described["codes"] == {
        "bytes_per_document": 4,
        "dimensions": described["codes"]["dimensions"],
        "candidates": [[10, 20]],
        "breadth": described["codes"]["breadth"],
        "graph": None,
        "lists": None,
        "factory": None,
    }
    queries = random_gaussians(30, 12, seed=9)
    body = {
        "queries": [
            {"mean": m.tolist(), "variance": v.tolist()} for m, v in zip(queries.means, queries.variances, strict=True)
        ]
    }

    def ids(**options: object) -> list[list[str]]:
        response = client.post("/v1/search/batch", body | options)
        assert response.status_code == 200, response.text
        return [[result["id"] for result in results] for results in response.json()["results"]]

    exact = exact_scores(queries, documents)
    true = [[f"d{row}" for row in np.argsort(-scores)[:10]] for scores in exact]
    assert ids(exact=True) == true
    assert ids(candidates=2000) == true
    assert ids() == [ranking.ids for ranking in searcher.search(queries, 10)] != true


def test_an_index_of_another_kind_is_taken_up(
    make_index: MakeIndex, documents: Gaussians, serve: Serve, tmp_path: Path
) -> None:
    directory = make_index(documents)
    client = serve(directory, reload_seconds=0.05)
    assert client.get("/v1/index").json()["kind"] == "flat"
    build_index([tmp_path / "index.parquet"], directory, BuildOptions(kind=FASTSCAN))
    wait_until(lambda: client.get("/v1/index").json()["generation"] == 2)
    assert client.get("/v1/index").json()["kind"] == "fastscan"
