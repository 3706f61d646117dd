"""Documents of an index by id and by number: their Gaussians, their payload, and the parts of a divergence."""

import math

import numpy as np
import pytest

from index import Gaussians, LocalSearcher
from index.documents import GaussianStore
from index.errors import DocumentNotFoundError
from tests.conftest import MakeIndex, random_gaussians
from tests.rankings import exact_scores, ids_of


def test_every_document_is_found_by_id_and_by_number(make_index: MakeIndex) -> None:
    documents = random_gaussians(23, 3)
    searcher = LocalSearcher(make_index(documents, segment_docs=5, text=[f"text {row}" for row in range(23)]))
    for row in range(23):
        for document in (searcher.document(f"d{row}"), searcher.document_at(row)):
            assert (document.id, document.payload) == (f"d{row}", {"text": f"text {row}"})
            assert document.gaussian.means.equal(documents.means[row : row + 1])
            assert document.gaussian.variances.equal(documents.variances[row : row + 1])
    assert len(searcher) == 23


@pytest.mark.parametrize("unknown", ["d23", "", "D1", "d", "d1 ", "zzz", "\udc80"])
def test_an_unknown_id_is_an_error_that_names_it(make_index: MakeIndex, unknown: str) -> None:
    searcher = LocalSearcher(make_index(random_gaussians(23, 3), segment_docs=5))
    with pytest.raises(DocumentNotFoundError) as caught:
        searcher.document(unknown)
    assert repr(unknown) in str(caught.value)


def test_ids_of_any_script_and_shape_are_found(make_index: MakeIndex) -> None:
    ids = ["ß", "\u0000", "a/b?c", " ", "\U0001f600" * 20, "\uffff", "1", "01", "id\nwith\nlines", "x" * 512]
    documents = random_gaussians(len(ids), 2)
    searcher = LocalSearcher(make_index(documents, ids, segment_docs=4))
    for row, name in enumerate(ids):
        assert searcher.document(name).gaussian.means.equal(documents.means[row : row + 1])


def test_payloads_come_in_the_order_asked_for_across_segments(make_index: MakeIndex) -> None:
    searcher = LocalSearcher(
        make_index(random_gaussians(20, 3), segment_docs=6, place=list(range(20)), even=[True, False] * 10)
    )
    numbers = np.array([19, 0, 7, 7, 12, 3])
    assert searcher.payloads(numbers) == [{"place": row, "even": row % 2 == 0} for row in numbers.tolist()]
    assert searcher.payloads(np.array([], dtype=np.int64)) == []


def test_no_documents_of_several_segments_are_no_gaussians() -> None:
    """As where every query of a search finds too few candidates to score them."""
    store = GaussianStore([np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)])
    for numbers in (np.empty((0, 7), np.int64), np.empty((2, 0), np.int64), np.empty(0, np.int64)):
        means, variances = store.gaussians(numbers)
        assert means.shape == variances.shape == (*numbers.shape, 2)


def test_a_ranking_leads_to_its_documents(make_index: MakeIndex) -> None:
    documents = random_gaussians(40, 3)
    searcher = LocalSearcher(make_index(documents, segment_docs=11, name_of=ids_of(40)))
    (ranking,) = searcher.search(random_gaussians(1, 3, seed=1), 40)
    assert [payload["name_of"] for payload in searcher.payloads(ranking.documents)] == ranking.ids
    assert [searcher.document_at(int(number)).id for number in ranking.documents] == ranking.ids


def test_a_ranking_can_be_cut_and_freed_of_one_document(make_index: MakeIndex) -> None:
    documents = random_gaussians(10, 3)
    (ranking,) = LocalSearcher(make_index(documents)).search(documents[4:5], 5)
    assert ranking.ids[0] == "d4"
    rest = ranking.without("d4")
    assert (rest.ids, rest.scores.tolist()) == (ranking.ids[1:], ranking.scores[1:].tolist())
    assert rest.documents.tolist() == ranking.documents[1:].tolist()
    assert ranking.without("d99") is ranking
    assert ranking.without(None) is ranking
    assert (ranking.top(2).ids, ranking.top(2).scores.tolist()) == (ranking.ids[:2], ranking.scores[:2].tolist())
    assert ranking.top(5) is ranking


def test_documents_without_payload_have_an_empty_one(make_index: MakeIndex) -> None:
    searcher = LocalSearcher(make_index(random_gaussians(5, 3), segment_docs=2))
    assert searcher.payloads(np.array([4, 0])) == [{}, {}]
    assert searcher.document("d3").payload == {}


def test_explanations_add_up_to_the_score(make_index: MakeIndex) -> None:
    documents, query = random_gaussians(30, 12), random_gaussians(1, 12, seed=1)
    searcher = LocalSearcher(make_index(documents, segment_docs=7))
    (ranking,) = searcher.search(query, 30)
    parts = searcher.explain(query, ranking.documents)
    sums = [-(part.log_determinant + part.trace + part.mahalanobis) for part in parts]
    np.testing.assert_allclose(sums, ranking.scores, rtol=1e-12)
    np.testing.assert_allclose(sums, np.sort(exact_scores(query, documents)[0])[::-1], rtol=1e-12)


def test_the_parts_of_a_divergence_are_those_worked_out_by_hand(make_index: MakeIndex) -> None:
    # KL(N(1, 4) || N(3, 1)) = ln(1/2) + (4 + (1 - 3)^2) / 2 - 1/2; the second dimension is the same in both.
    document = Gaussians.from_arrays(np.array([[3.0, 5.0]], np.float32), np.array([[1.0, 2.0]], np.float32))
    query = Gaussians.from_arrays([[1.0, 5.0]], [[4.0, 2.0]])
    searcher = LocalSearcher(make_index(document))
    (part,) = searcher.explain(query, np.array([0]))
    assert part.log_determinant == pytest.approx(math.log(1 / 2))
    assert part.trace == pytest.approx(3 / 2)
    assert part.mahalanobis == pytest.approx(2)
    assert (part.dimensions, part.contributions) == ([0, 1], [pytest.approx(math.log(1 / 2) + 7 / 2), 0.0])
    assert searcher.search(query, 1)[0].scores[0] == pytest.approx(-math.log(1 / 2) - 7 / 2)
