"""What `gaussearch evaluate` says, held to values computed by hand, by enumeration and by search itself."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner, Result

from index import Columns, IndexDirectory, VarianceAs, build_index
from service import cli, evaluate_command
from service.app import create_app
from service.evaluation import compare, evaluate, measures_of
from service.prediction import correlate, predicted_measure
from service.settings import ServiceSettings
from service.trec import RELEVANCE_LIMIT, EvaluationError, Qrels, Run, read_qrels, read_run, write_run
from service.uncertainty import uncertainty
from tests.conftest import MakeIndex, random_gaussians, write_corpus

QUERIES = random_gaussians(3, 5, seed=21)
QRELS: Qrels = {"q1": {"a": 1, "b": 2, "c": 0}, "q2": {"d": 1}, "q3": {"e": 1}, "q4": {"f": 0, "g": -1}}
RUN: Run = {
    "q1": {"c": 9.0, "a": 8.5, "x": 8.0, "b": 7.5},
    "q2": {f"x{row}": 20.0 - row for row in range(10)} | {"d": 1.0},
    "q5": {"a": 1.0},
}
NDCG = (1 / math.log2(3) + 2 / math.log2(5)) / (2 + 1 / math.log2(3))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "200"})


def told(*arguments: object) -> Any:
    done = run(*arguments, "--format", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def write_qrels(path: Path, qrels: Qrels = QRELS) -> Path:
    lines = (f"{query} 0 {document} {each}\n" for query, judged in qrels.items() for document, each in judged.items())
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def qrels(tmp_path: Path) -> Path:
    return write_qrels(tmp_path / "judged.qrels")


@pytest.fixture
def trec(tmp_path: Path) -> Path:
    write_run(tmp_path / "run.trec", RUN)
    return tmp_path / "run.trec"


def read(path: Path, column: str = "relevant") -> Qrels:
    return read_qrels(path, Columns(), VarianceAs.VARIANCE, column)


def test_measures_are_those_computed_by_hand() -> None:
    found = evaluate(QRELS, RUN, measures_of("nDCG@10,MRR@10,RR@2,Recall@100,R@3,P@2,RR"))
    assert found.queries == ["q1", "q2", "q3"]
    assert {name: values.tolist() for name, values in found.values.items()} == {
        "nDCG@10": [pytest.approx(NDCG), 0, 0],
        "RR@10": [0.5, 0, 0],
        "RR@2": [0.5, 0, 0],
        "R@100": [1, 1, 0],
        "R@3": [0.5, 0, 0],
        "P@2": [0.5, 0, 0],
        "RR": [0.5, pytest.approx(1 / 11), 0],
    }
    assert found.means()["nDCG@10"] == pytest.approx(NDCG / 3)
    assert (found.without_results, found.without_relevant, found.not_judged) == (1, 1, 1)


def test_equal_scores_are_ordered_from_the_last_id_to_the_first_whatever_the_measure() -> None:
    judged = {"q": {"a": 1}}
    measures = measures_of("RR@10,RR,nDCG@10,P@1,AP")
    last = evaluate(judged, {"q": {"a": 1.0, "b": 1.0}}, measures).means()
    assert last == evaluate(judged, {"q": {"a": 1.0, "b": 2.0}}, measures).means()
    assert (last["RR@10"], last["RR"], last["P@1"], last["AP"]) == (0.5, 0.5, 0, 0.5)
    # trec_eval's own floats would not tell these apart.
    assert evaluate(judged, {"q": {"a": 1.0 + 1e-12, "b": 1.0}}, measures).means()["P@1"] == 1


def test_names_that_no_library_would_take_are_measured() -> None:
    odd = "\0 \ud800雪"
    found = evaluate({odd: {odd: 1}}, {odd: {odd: -1e300, "\0": -math.inf}}, measures_of("nDCG@10,RR@10"))
    assert found.means() == {"nDCG@10": 1, "RR@10": 1}


def test_the_text_says_how_many_queries_there_were(qrels: Path, trec: Path) -> None:
    done = run("--qrels", qrels, "--run", trec)
    assert done.exit_code == 0, done.output
    for line in (
        "3 queries evaluated",
        "1 of them without results, which count as 0",
        "1 more without a relevant document in the qrels, left out",
        "1 more that are not in the qrels, left out",
        f"│ nDCG@10 │ {NDCG / 3:.4f} │",
    ):
        assert line in done.stdout.splitlines()
    assert told("--qrels", qrels, "--run", trec) == {
        "queries": {"evaluated": 3, "without_results": 1, "without_relevant": 1, "not_judged": 1},
        "measures": {
            "nDCG@10": pytest.approx(NDCG / 3),
            "RR@10": pytest.approx(0.5 / 3),
            "R@100": pytest.approx(2 / 3),
        },
    }


def test_the_tests_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.random(9), rng.random(9)
    found, differences = compare(one, other), one - other
    error = differences.std(ddof=1) / 3
    assert found.difference == pytest.approx(differences.mean())
    assert found.t_test == pytest.approx(2 * stats.t.sf(abs(differences.mean()) / error, 8))
    reach = stats.t.ppf(0.975, 8) * error
    assert [found.low, found.high] == pytest.approx([differences.mean() - reach, differences.mean() + reach])
    swaps = [abs(np.mean(differences * signs)) for signs in itertools.product((-1, 1), repeat=9)]
    assert found.randomisation == pytest.approx(np.mean([each >= swaps[-1] - 1e-12 for each in swaps]))
    back = compare(other, one)
    assert [back.t_test, back.randomisation] == pytest.approx([found.t_test, found.randomisation])


def test_many_queries_are_swapped_at_random_and_alike_each_time() -> None:
    rng = np.random.default_rng(5)
    one = rng.random(60)
    other = one - 0.03 + rng.normal(0, 0.1, 60)
    found = compare(one, other)
    assert found == compare(one, other)
    assert found.t_test is not None
    assert found.randomisation == pytest.approx(found.t_test, abs=0.02)


def test_comparisons_without_a_spread() -> None:
    one = np.array([0.5, 1.0, 0.25])
    same, better = compare(one, one), compare(one + 1, one)
    assert (same.difference, same.low, same.high, same.t_test, same.randomisation) == (0, 0, 0, 1, 1)
    assert (better.difference, better.low, better.high, better.t_test, better.randomisation) == (1, 1, 1, None, 0.25)
    assert compare(one[:1], one[:1] - 1).t_test is None
    tenth = compare(one + 0.1, one)
    assert [tenth.low, tenth.high] == pytest.approx([0.1, 0.1])
    assert tenth.t_test is None
    # Only one query differs, so every swap is as far from 0.
    assert compare(np.eye(30)[0], np.zeros(30)).randomisation == 1


def test_uncertainty_is_that_of_its_formulae() -> None:
    found = uncertainty(QUERIES)
    for each, mean, variance in zip(found, QUERIES.means, QUERIES.variances.double(), strict=True):
        gaussian: Any = torch.distributions.Normal(mean.double(), variance.sqrt())
        entropy = gaussian.entropy().sum()
        assert each.log_determinant == pytest.approx(float(2 * entropy) - 5 * (1 + math.log(2 * math.pi)))
        assert each.mean_variance == pytest.approx(float(variance.mean()))
        assert each.variance_norm == pytest.approx(float(variance.norm()))


def test_correlations_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(8)
    one = rng.random(12)
    other = one + rng.random(12)
    found = correlate(one, other)
    pairs = list(itertools.combinations(range(12), 2))
    agree = sum(np.sign(one[a] - one[b]) * np.sign(other[a] - other[b]) for a, b in pairs)
    expected = {
        "pearson": np.corrcoef(one, other)[0, 1],
        "spearman": np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1],
        "kendall": agree / len(pairs),
    }
    assert {name: each.coefficient for name, each in found.items() if each} == pytest.approx(expected)
    r = expected["pearson"]
    t = r * math.sqrt(10 / (1 - r * r))
    assert found["pearson"] is not None
    assert found["pearson"].p == pytest.approx(2 * stats.t.sf(t, 10))
    for values in (one[:2], np.ones(12)):
        assert correlate(values, other[: len(values)]) == {"pearson": None, "spearman": None, "kendall": None}
    nearly = correlate(np.array([1.0] * 11 + [1.0 + 1e-15]), other)["pearson"]
    assert nearly is None or abs(nearly.coefficient) <= 1
    assert predicted_measure(measures_of("RR@10,nDCG@10")) == "nDCG@10"
    assert predicted_measure(measures_of("RR@10,R@100")) == "RR@10"


@pytest.mark.parametrize("option", ["--index", "--url"])
def test_a_search_is_worth_what_its_run_is(
    tmp_path: Path, make_index: MakeIndex, listen: Callable[..., int], option: str
) -> None:
    directory = make_index(random_gaussians(40, 5), [f"d{row}" for row in range(40)])
    queries = write_corpus(tmp_path / "q.parquet", QUERIES, ["q1", "q2", "q3"], relevant=[["d1", "d2"], ["d3"], []])
    target: object = directory.path
    if option == "--url":
        port = listen(create_app(ServiceSettings(index=directory.path, api_key="sesame")))  # type: ignore[arg-type]
        target = f"http://127.0.0.1:{port}"
    searched = CliRunner().invoke(
        cli.app,
        ["search", "--queries", str(queries), "--index", str(directory.path), "--format", "trec", "--top-k", "20"],
    )
    run_file = tmp_path / "searched.trec"
    run_file.write_text(searched.stdout)
    saved, lines = tmp_path / "saved.trec", tmp_path / "lines.jsonl"
    options = ("--qrels", queries, "--measures", "nDCG@10,RR@20,R@20")
    found = told(
        *(*options, option, target, "--queries", queries, "--top-k", 20, "--api-key", "sesame"),
        *("--save-run", saved, "--per-query", lines, "--against", run_file),
    )
    expected = told(*options, "--run", run_file)
    assert found["measures"] == expected["measures"]
    assert found["queries"] == {"evaluated": 2, "without_results": 0, "without_relevant": 1, "not_judged": 0}
    assert saved.read_text() == searched.stdout
    for comparison in found["against"]["comparison"].values():
        assert (comparison["difference"], comparison["t_test"]) == (0, 1)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["query"] for row in rows] == ["q1", "q2"]
    for name, mean in expected["measures"].items():
        assert np.mean([row[name] for row in rows]) == pytest.approx(mean)
    assert [row["mean_variance"] for row in rows] == pytest.approx(QUERIES.variances[:2].mean(1).tolist())
    assert found["prediction"]["measure"] == "nDCG@10"
    assert set(found["prediction"]["predictors"]) == {"log_determinant", "mean_variance", "variance_norm"}
    # Two queries correlate with anything.
    assert found["prediction"]["predictors"]["mean_variance"]["pearson"] is None
    assert found["prediction"]["queries"] == 2
    shown = run("--qrels", queries, option, target, "--queries", queries, "--api-key", "sesame").stdout
    said = "nDCG@10 by the uncertainty of queries: it takes 3 queries or more to correlate them, and there are 2"
    assert said in shown.splitlines()
    assert "predictor" not in shown


def test_what_is_the_same_for_all_queries_correlates_with_nothing(tmp_path: Path, make_index: MakeIndex) -> None:
    directory = make_index(random_gaussians(3, 5), ["a", "b", "c"])
    queries = write_corpus(tmp_path / "q.parquet", QUERIES, ["q1", "q2", "q3"], relevant=[["a", "b", "c"]] * 3)
    shown = run("--qrels", queries, "--index", directory.path, "--queries", queries).stdout
    assert "nDCG@10 by the uncertainty of queries: nothing goes with what is the same for all queries" in shown


def test_the_sample_has_the_quality_that_the_readme_states(sample: Path, tmp_path: Path) -> None:
    build_index([sample / "documents.parquet"], IndexDirectory(tmp_path / "i"))
    queries, saved, lines = sample / "queries.parquet", tmp_path / "run", tmp_path / "lines"
    found = told(
        *("--qrels", queries, "--index", tmp_path / "i", "--queries", queries, "--measures", "MRR@10,R@100"),
        *("--save-run", saved, "--per-query", lines),
    )
    assert round(found["measures"]["RR@10"], 3) == 0.480
    assert found["queries"]["evaluated"] == 400
    ranked: dict[str, list[str]] = {}
    for line in saved.read_text().splitlines():
        query, _, document, *_ = line.split()
        ranked.setdefault(query, []).append(document)
    table = pq.read_table(queries, columns=["id", "relevant"]).to_pylist()
    places = {
        row["id"]: ranked[row["id"]].index(row["relevant"]) if row["relevant"] in ranked[row["id"]] else 100
        for row in table
    }
    assert found["measures"]["R@100"] == pytest.approx(np.mean([place < 100 for place in places.values()]))
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {row["query"]: row["RR@10"] for row in rows} == {
        query: pytest.approx(1 / (place + 1)) if place < 10 else 0 for query, place in places.items()
    }
    predictors = found["prediction"]["predictors"]
    for name, correlations in predictors.items():
        values = [[row[name] for row in rows], [row["RR@10"] for row in rows]]
        assert correlations["pearson"]["coefficient"] == pytest.approx(np.corrcoef(values)[0, 1])
        assert correlations["spearman"]["p"] == pytest.approx(stats.spearmanr(*values).pvalue)


def test_judgements_are_the_same_in_each_form(tmp_path: Path, qrels: Path) -> None:
    beir = tmp_path / "test.tsv"
    rows = [f"{query}\t{document}\t{each}" for query, judged in QRELS.items() for document, each in judged.items()]
    beir.write_bytes(("\ufeff" + "\r\n".join(["query-id\tcorpus-id\tscore", *rows, "", ""])).encode())
    assert read(qrels) == read(beir) == QRELS
    columns = write_corpus(tmp_path / "q.parquet", QUERIES, ["q1", "q2", "q3"], best=[["a", "b"], None, ["c"]])
    assert read(columns, "best") == {"q1": {"a": 1, "b": 1}, "q2": {}, "q3": {"c": 1}}
    numbers = write_corpus(tmp_path / "n.parquet", QUERIES, ["q1", "q2", "q3"], relevant=[7, 8, 9])
    assert read(numbers) == {"q1": {"7": 1}, "q2": {"8": 1}, "q3": {"9": 1}}


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    scores = {"ä\u00a0b": -1.0000000000000002, "c": -1e-300}
    write_run(tmp_path / "run", {"q": {"c": -0.5, "d": -12.022821993466522}})
    assert read_run(tmp_path / "run") == {"q": {"c": -0.5, "d": -12.022821993466522}}
    lines = [f"q Q0 {document} 1 {score!r} x" for document, score in scores.items()]
    (tmp_path / "run").write_text("\n".join(lines), encoding="utf-8")
    assert read_run(tmp_path / "run") == {"q": scores}


BAD_QRELS = [
    (b"", "holds no judgements"),
    (b"\n \n", "holds no judgements"),
    (b"query-id\tcorpus-id\tscore\n", "holds no judgements"),
    (b"q 0 d 1\nq 0 d\n", "line 2: it has 3 fields"),
    (b"q 0 d 1 2\n", "line 1: it has 5 fields"),
    (b"\nq 0 d yes\n", "line 2: relevance 'yes' is no whole number"),
    (b"q 0 d 1.0\n", "line 1: relevance '1.0'"),
    (b"q 0 d 1_0\n", "line 1: relevance '1_0'"),
    (f"q 0 d {RELEVANCE_LIMIT + 1}\n".encode(), "no whole number from -1000 to 1000"),
    (b"q 0 d " + b"9" * 5000, "line 1: relevance '999"),
    (b"q 0 d 1\nq 0 d 1\n", "line 2: document 'd' is judged twice for query 'q'"),
    (b"q 0 \xff 1\n", "line 1: it is not UTF-8"),
    (b"query-id\tcorpus-id\tscore\nq 0 d 1\n", "line 2: it has 1 fields; judgements have 3 fields, apart by tabs"),
    (b"query-id\tcorpus-id\tscore\nq\t\t1\n", "line 2: it has 2 fields"),
    (b"q 0 d 0\n", "no query has a relevant document in the qrels"),
    (b"other 0 d 1\n", "no query of the qrels has results"),
]


@pytest.mark.parametrize(("data", "message"), BAD_QRELS)
def test_bad_judgements_are_named(tmp_path: Path, trec: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.qrels"
    path.write_bytes(data)
    fails(message, "--qrels", path, "--run", trec)


BAD_RUNS = [
    (b"", "holds no results"),
    (b"q1 Q0 a 1 2.0\n", "line 1: it has 5 fields; a TREC run has 6"),
    (b"q1 Q0 a 1 2.0 x y\n", "line 1: it has 7 fields"),
    (b"q1 Q0 a first 2.0 x\n", "line 1: rank 'first' is no whole number"),
    (b"q1 Q0 a 1 high x\n", "line 1: score 'high' is no finite number"),
    (b"q1 Q0 a 1 nan x\n", "line 1: score 'nan' is no finite number"),
    (b"q1 Q0 a 1 -inf x\n", "line 1: score '-inf' is no finite number"),
    (b"q1 Q0 a 1 1_0 x\n", "line 1: score '1_0' is no finite number"),
    (b"q1 Q0 a 1 2 x\n\nq1 Q0 a 2 1 x\n", "line 3: document 'a' is found twice for query 'q1'"),
    (b"q1 Q0 \xff 1 2 x\n", "line 1: it is not UTF-8"),
]


@pytest.mark.parametrize("option", ["--run", "--against"])
@pytest.mark.parametrize(("data", "message"), BAD_RUNS)
def test_bad_runs_are_named(tmp_path: Path, qrels: Path, trec: Path, option: str, data: bytes, message: str) -> None:
    path = tmp_path / "bad.trec"
    path.write_bytes(data)
    other = () if option == "--run" else ("--run", trec)
    fails(message, "--qrels", qrels, option, path, *other)


def fails(message: str, *arguments: object) -> None:
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


WORDS = st.sampled_from(
    [
        b"q1",
        b"Q0",
        b"0",
        b"1",
        b"-1",
        b"a",
        b"2.5",
        b"nan",
        b"1e999",
        b"\xff",
        b"\0",
        b"query-id",
        b"corpus-id",
        b"score",
    ]
)
LINES = st.lists(
    st.lists(WORDS, max_size=7).flatmap(lambda words: st.sampled_from([b" ", b"\t"]).map(lambda by: by.join(words)))
    | st.binary(max_size=20),
    max_size=4,
).map(b"\n".join)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(qrels_data=LINES, run_data=LINES)
@example(b"q1 0 a 1", b"q1 Q0 a 1 2 x")
@example(b"query-id\tcorpus-id\tscore\nq1\ta\t1", b"q1 Q0 a 1 2 x")
def test_no_bytes_give_a_traceback(tmp_path: Path, qrels_data: bytes, run_data: bytes) -> None:
    (tmp_path / "any.qrels").write_bytes(qrels_data)
    (tmp_path / "any.trec").write_bytes(run_data)
    done = run("--qrels", tmp_path / "any.qrels", "--run", tmp_path / "any.trec")
    assert done.exit_code in (0, 1)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 0 or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ("", "'' is no measure"),
        ("nDCG@10,", "'' is no measure"),
        ("nonsense@3", "'nonsense@3' is no measure"),
        ("nDCG@ten", "is no measure"),
        ("nDCG\n\n@3", "is no measure"),
        ("nDCG@1.5", "is no measure"),
        ("nDCG@0", "'nDCG@0' cannot be measured: a cutoff is from 1"),
        ("R@99999999", "cannot be measured"),
        ("P(rel=0)@3", "cannot be measured"),
        ("P(rel=2000000000)@3", "cannot be measured"),
        ("nDCG(gains={1:2000000000})@10", "cannot be measured"),
        ("nDCG(gains={1:-5})@10", "is no measure"),
        ("nDCG(gains={1:'a'})@10", "is no measure"),
        ("alpha_nDCG@10", "cannot be measured"),
        ("(" * 500, "is no measure"),
    ],
)
def test_measures_that_cannot_be_measured_are_named(qrels: Path, trec: Path, measures: str, message: str) -> None:
    fails(message, "--qrels", qrels, "--run", trec, "--measures", measures)


def test_a_list_of_measures_is_parted_outside_of_parentheses() -> None:
    names = "nDCG(gains={0:0,1:2},judged_only=False)@10, MAP(rel=2), MRR@10,RR@10"
    assert [str(measure).partition("(")[0] for measure in measures_of(names)] == ["nDCG", "AP", "RR@10"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "give one of --run, --index and --url"),
        (["--run", "{trec}", "--index", "x"], 2, "give one of --run, --index and --url"),
        (["--index", "{nowhere}"], 2, "give --queries with --index or --url"),
        (["--run", "{trec}", "--queries", "x"], 2, "--queries goes with --index or --url"),
        (["--run", "{trec}", "--save-run", "x"], 2, "--save-run goes with --index or --url"),
        (["--run", "{nowhere}"], 1, "nowhere cannot be read: No such file"),
        (["--run", "{folder}"], 1, "cannot be read: Is a directory"),
        (["--run", "{trec}", "--per-query", "{nowhere}/x"], 1, "--per-query: {nowhere}/x cannot be written: make its"),
        (["--run", "{trec}", "--per-query", "{folder}"], 1, "cannot be written: it is a folder"),
        (["--index", "{nowhere}", "--queries", "{queries}"], 1, "no index in"),
        (["--index", "{index}", "--queries", "{nowhere}"], 1, "nowhere"),
        (
            ["--index", "{index}", "--queries", "{queries}", "--top-k", "99"],
            1,
            "R@100 looks at 100 documents and --top-k",
        ),
        (["--index", "{index}", "--queries", "{twice}"], 1, "query 'q1' is there twice"),
        (["--qrels", "{queries}", "--run", "{trec}"], 1, "has no column 'relevant' of relevant documents"),
        (["--qrels", "{queries}", "--run", "{trec}", "--relevant-column", "odd"], 1, "row 0: odd is '1.5'"),
        (["--qrels", "{twice}", "--run", "{trec}"], 1, "query 'q1' is there twice; ids of queries must be unique"),
        (["--url", "http://127.0.0.1:9", "--queries", "{queries}"], 1, "does not answer"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, make_index: MakeIndex, qrels: Path, trec: Path, arguments: list[str], status: int, message: str
) -> None:
    twice = write_corpus(tmp_path / "twice.parquet", QUERIES, ["q1", "q1", "q2"], relevant=["a", "b", "c"])
    names = {
        "queries": write_corpus(tmp_path / "queries.parquet", QUERIES, ["q1", "q2", "q3"], odd=[1.5, 2.5, 3.5]),
        "twice": twice,
        "trec": trec,
        "folder": tmp_path,
        "nowhere": tmp_path / "nowhere",
        "index": make_index(random_gaussians(9, 5)).path,
    }
    done = run("--qrels", qrels, *(argument.format(**names) for argument in arguments))
    assert done.exit_code == status, done.output
    assert message.format(**names) in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.output


def test_what_fails_leaves_the_files_of_the_last_time(tmp_path: Path, make_index: MakeIndex, qrels: Path) -> None:
    directory = make_index(random_gaussians(3, 5), ["a b", "c", "d"])
    queries = write_corpus(tmp_path / "queries.parquet", QUERIES, ["q1", "q2", "q3"])
    saved, lines = tmp_path / "saved.trec", tmp_path / "lines.jsonl"
    saved.write_text("as it was")
    options = ("--qrels", qrels, "--index", directory.path, "--queries", queries, "--per-query", lines)
    fails("id 'a b' has white space", *options, "--save-run", saved)
    assert saved.read_text() == "as it was"
    assert not lines.exists()
    assert run(*options).exit_code == 0
    assert [json.loads(line)["query"] for line in lines.read_text().splitlines()] == ["q1", "q2", "q3"]


@pytest.mark.parametrize("missing", ["ir_measures", "scipy.stats"])
def test_a_missing_extra_is_named(qrels: Path, trec: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    fails("pip install 'gaussearch[evaluate]'", "--qrels", qrels, "--run", trec)


def test_nothing_else_needs_the_extra() -> None:
    program = (
        "import sys, service.cli; sys.exit(' '.join({'ir_measures', 'pytrec_eval', 'scipy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_what_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read"):
        read(tmp_path / "nowhere.qrels")
    assert evaluate_command.DEFAULT_MEASURES in cli_help()


def cli_help() -> str:
    return CliRunner().invoke(cli.app, ["evaluate", "--help"], env={"COLUMNS": "200"}).output


def test_a_query_that_is_there_twice_is_named_with_its_file(make_index: MakeIndex, qrels: Path, tmp_path: Path) -> None:
    directory = make_index(random_gaussians(5, 5))
    queries = write_corpus(tmp_path / "twice.parquet", QUERIES, ids=["q1", "q2", "q1"])
    done = run("--index", directory.path, "--queries", queries, "--qrels", qrels)
    assert done.exit_code == 1
    assert "twice.parquet: query 'q1' is there twice" in done.output
