"""An index in the hands of LangChain and of PyTerrier, themselves: they find what a search of ours does."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch

from index import Gaussians, IndexDirectory, LocalSearcher
from service.app import create_app
from service.langchain import GaussianRetriever
from service.pyterrier import GaussianSearch
from service.runs import LocalRunner, RemoteRunner, Runner
from service.settings import ServiceSettings
from tests.conftest import MakeIndex, random_gaussians

K, TOP_K = 4, 3
WORDS = ["one", "two", "three"]
QUERIES = random_gaussians(len(WORDS), K, seed=7)


def encode(texts: Sequence[str]) -> Gaussians:
    """A model of three words."""
    return QUERIES[torch.tensor([WORDS.index(text) for text in texts])]


@pytest.fixture
def directory(make_index: MakeIndex) -> IndexDirectory:
    return make_index(random_gaussians(30, K), text=[f"text {row}" for row in range(30)], year=list(range(30)))


@pytest.fixture(params=["directory", "service"])
def runner(request: pytest.FixtureRequest, directory: IndexDirectory, listen: Callable[..., int]) -> Runner:
    if request.param == "directory":
        return LocalRunner(directory.path, "cpu")
    app = create_app(ServiceSettings(index=directory.path))
    return RemoteRunner(f"http://127.0.0.1:{listen(app)}", None)


def expected(directory: IndexDirectory) -> list[tuple[list[str], list[float]]]:
    found = LocalSearcher(directory, device="cpu").search(QUERIES, TOP_K)
    return [(ranking.ids, ranking.scores.tolist()) for ranking in found]


def test_langchain_retrieves_what_is_nearest(runner: Runner, directory: IndexDirectory) -> None:
    retriever = GaussianRetriever(runner=runner, encode=lambda text: encode([text]), top_k=TOP_K)
    for word, (ids, scores) in zip(WORDS, expected(directory), strict=True):
        found = retriever.invoke(word)
        assert [document.id for document in found] == ids
        assert [document.metadata["score"] for document in found] == pytest.approx(scores, rel=1e-12)
        rows = [int(name.removeprefix("d")) for name in ids]
        assert [(document.page_content, document.metadata["year"]) for document in found] == [
            (f"text {row}", row) for row in rows
        ]
        assert "text" not in found[0].metadata
        assert asyncio.run(retriever.ainvoke(word)) == found


def test_langchain_gets_a_column_of_another_name(runner: Runner) -> None:
    retriever = GaussianRetriever(runner=runner, encode=lambda text: encode([text]), top_k=1, text_column="year")
    (found,) = retriever.invoke("one")
    assert found.page_content == str(found.id).removeprefix("d")
    assert found.metadata.keys() == {"text", "score"}
    retriever.text_column = "none"
    assert retriever.invoke("one")[0].page_content == ""


def test_langchain_keeps_a_payload_that_is_called_as_the_score_is(make_index: MakeIndex) -> None:
    runner = LocalRunner(make_index(random_gaussians(30, K), score=list(range(30))).path, "cpu")
    (found,) = GaussianRetriever(runner=runner, encode=lambda text: encode([text]), top_k=1).invoke("one")
    assert found.metadata["score"] < 0
    assert found.metadata["payload_score"] == int(str(found.id).removeprefix("d"))


def require_ranked(found: Any, directory: IndexDirectory) -> None:
    assert found["qid"].tolist() == list(np.repeat(["q1", "q2", "q3"], TOP_K))
    for qid, (ids, scores) in zip(["q1", "q2", "q3"], expected(directory), strict=True):
        its = found[found["qid"] == qid]
        assert its["docno"].tolist() == ids
        assert its["score"].tolist() == pytest.approx(scores, rel=1e-12)
        assert its["rank"].tolist() == [0, 1, 2]


def test_pyterrier_ranks_gaussians_and_words(runner: Runner, directory: IndexDirectory) -> None:
    words = pd.DataFrame({"qid": ["q1", "q2", "q3"], "query": WORDS})
    gaussians = words[["qid"]].assign(
        query_mean=list(QUERIES.means.numpy()), query_variance=list(QUERIES.variances.numpy())
    )
    require_ranked(GaussianSearch(runner, top_k=TOP_K)(gaussians), directory)
    by_words = GaussianSearch(runner, top_k=TOP_K, encode=encode)
    found: Any = by_words(words)
    require_ranked(found, directory)
    assert found["query"].tolist() == list(np.repeat(WORDS, TOP_K))
    # What was ranked before is ranked anew, whatever its index.
    require_ranked(by_words(words.assign(rank=7, score=0.0).set_index(pd.Index([9, 9, 4]))), directory)
    assert by_words.search("two")["docno"].tolist() == expected(directory)[1][0]
    assert not pt.java.started()


def test_pyterrier_asks_some_queries_at_a_time(
    runner: Runner, directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def search(queries: Gaussians, how: Any) -> Any:
        asked.append(len(queries))
        return found(queries, how)

    found = runner.search
    monkeypatch.setattr(runner, "search", search)
    monkeypatch.setattr("service.pyterrier.BATCH_QUERIES", 2)
    require_ranked(
        GaussianSearch(runner, top_k=TOP_K, encode=encode)(pd.DataFrame({"qid": ["q1", "q2", "q3"], "query": WORDS})),
        directory,
    )
    assert asked == [2, 1]


def test_pyterrier_is_told_of_columns_that_are_missing_and_may_ask_nothing(directory: IndexDirectory) -> None:
    search = GaussianSearch(LocalRunner(Path(directory.path), "cpu"))
    with pytest.raises(pt.validate.InputValidationError, match="query_mean"):
        search(pd.DataFrame({"qid": ["q1"], "query": ["one"]}))
    nothing = pd.DataFrame({"qid": [], "query_mean": [], "query_variance": []})
    found: Any = search(nothing)
    assert found.empty
    assert {"qid", "docno", "score", "rank"} <= set(found.columns)
