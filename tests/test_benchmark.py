"""The benchmark from end to end at tiny sizes: what its report says and checks, never how fast anything was."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

BENCHMARK = Path(__file__).parent.parent / "scripts" / "benchmark.py"
PARTS = {"engine", "kinds", "service", "build", "encoding"}


def run_benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GAUSSEARCH_")}
    command = [sys.executable, str(BENCHMARK), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with figures.json, figures.md, output.txt and scratch/, of one run of the parts that measure speed."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "scratch").mkdir()
    sizes = [
        "--documents",
        "300",
        "--memory-documents",
        "200",
        "600",
        "--memory-segment",
        "200",
        "--kinds-documents",
        "400",
    ]
    reports = ["--json", str(folder / "figures.json"), "--markdown", str(folder / "figures.md")]
    effort = ["--seconds", "0.01", "--rounds", "2", "--scratch", str(folder / "scratch")]
    done = run_benchmark("--parts", ",".join(sorted(PARTS)), *sizes, *reports, *effort)
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def report(ran: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((ran / "figures.json").read_text())
    return parsed


def figures_of(report: dict[str, Any], part: str, setting: str) -> dict[str, dict[str, Any]]:
    return {f["measure"]: f for f in report["figures"] if (f["part"], f["setting"]) == (part, setting)}


def test_the_report_says_where_and_with_what_it_was_made(report: dict[str, Any]) -> None:
    assert report["machine"]["cores"] == os.cpu_count()
    assert report["machine"]["cpu"]
    assert {"python", "torch", "numpy", "gaussearch"} <= set(report["versions"])
    assert {"faiss-cpu", "faiss-gpu"} & set(report["versions"])
    assert report["command"].startswith("python scripts/benchmark.py --parts ")
    assert report["arguments"]["documents"] == 300
    assert report["arguments"]["k"] == 128
    assert report["date"].endswith("+00:00")


def test_every_part_has_run_or_says_why_not(report: dict[str, Any]) -> None:
    ran = {figure["part"] for figure in report["figures"]}
    skipped = {reason.partition(":")[0] for reason in report["skipped"]}
    assert ran | skipped == PARTS
    assert not ran & skipped
    # Only a machine without a CUDA device is excused, and from one part only.
    assert skipped <= {"encoding"}


def test_every_figure_is_a_positive_number_with_quartiles_around_it(report: dict[str, Any]) -> None:
    for figure in report["figures"]:
        # Differences of two times, which noise alone can make negative at this size.
        if figure["measure"] in ("latency added to the engine's", "share of scoring all but 10 of the candidates"):
            continue
        assert figure["value"] > 0, figure
        if figure["quartiles"]:
            low, high = figure["quartiles"]
            assert low <= figure["value"] <= high, figure
        if figure["latency_ms"]:
            assert 0 < figure["latency_ms"][0] <= figure["latency_ms"][1], figure


@pytest.mark.parametrize(
    "setting", ["batch 1, 1 thread", "batch 1, all threads", "batch 32, all threads", "batch 128, all threads"]
)
def test_the_engine_is_held_against_faiss_at_its_default_and_with_blas(report: dict[str, Any], setting: str) -> None:
    figures = figures_of(report, "engine", setting)
    assert figures["gaussearch over IndexFlatIP"]["target"] == "≥ 0.9"
    assert figures["gaussearch over IndexFlatIP, BLAS forced"]["target"] == "≥ 1"
    assert {"gaussearch", "IndexFlatIP", "IndexFlatIP, BLAS forced"} <= set(figures)
    assert {"IndexFlatIP, folded over simplified", "gaussearch, folded over simplified"} <= set(figures)


def test_a_target_is_met_exactly_where_the_value_reaches_it(report: dict[str, Any]) -> None:
    with_target = [figure for figure in report["figures"] if figure["target"]]
    assert len(with_target) > 10
    for figure in with_target:
        sign, limit = figure["target"].split()
        assert figure["met"] == (figure["value"] >= float(limit) if sign == "≥" else figure["value"] <= float(limit))


def test_what_is_compared_finds_the_same_documents(report: dict[str, Any]) -> None:
    assert figures_of(report, "engine", "all queries")["IndexFlatIP's top 10 in ours"]["met"]
    checks = figures_of(report, "service", "all queries")
    assert checks["rankings equal to the engine's"]["value"] == 1.0
    assert checks["naive service's top 10 in the engine's"]["met"]


def test_encodings_take_as_many_bytes_as_their_widths_say_and_are_scanned_folded(report: dict[str, Any]) -> None:
    assert figures_of(report, "engine", "simplified")["vectors on disk"]["value"] == 4 * (3 * 128 + 1)
    assert figures_of(report, "engine", "folded")["vectors on disk"]["value"] == 4 * (2 * 128 + 1)
    assert figures_of(report, "engine", "either encoding")["scanned"]["value"] == 4 * (2 * 128 + 1)


@pytest.mark.parametrize("concurrency", [1, 16, 64])
def test_the_service_is_held_against_the_engine_and_the_naive_service(report: dict[str, Any], concurrency: int) -> None:
    figures = figures_of(report, "service", f"concurrency {concurrency}")
    assert (figures["gaussearch over the engine"]["target"] is not None) == (concurrency >= 16)
    assert (figures["gaussearch over the naive service"]["target"] is not None) == (concurrency == 16)
    assert ("latency added to the engine's" in figures) == (concurrency == 1)


def test_the_markdown_holds_every_figure(ran: Path, report: dict[str, Any]) -> None:
    lines = (ran / "figures.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and "p50 / p99" not in line]
    assert len(rows) == len(report["figures"])
    assert {line.count("|") for line in lines if line.startswith("|")} == {7}


def test_nothing_is_left_behind(ran: Path) -> None:
    assert list((ran / "scratch").iterdir()) == []
    left = [process.info["pid"] for process in psutil.process_iter(["pid", "cmdline"]) if _names(process, ran)]
    assert left == []


def _names(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in argument for argument in process.info["cmdline"] or [])


def test_a_corpus_of_ones_own_is_used_as_it_is(tmp_path: Path, sample: Path) -> None:
    queries = sample / "queries.parquet"
    done = run_benchmark(
        *("--corpus", str(queries), "--parts", "engine", "--seconds", "0.001", "--rounds", "1"),
        *("--json", str(tmp_path / "figures.json"), "--scratch", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["arguments"]["documents"] == 400
    assert report["arguments"]["corpus"] == "queries.parquet"
    assert {figure["part"] for figure in report["figures"]} == {"engine"}


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """figures.json of one run of the parts that are plotted."""
    folder = tmp_path_factory.mktemp("curves")
    path = folder / "figures.json"
    sizes = ["--documents", "400", "--growth-documents", "300", "600"]
    done = run_benchmark("--parts", "curves,growth", *sizes, "--scratch", str(folder), "--json", str(path))
    assert done.returncode == 0, done.stderr
    return path


def test_curves_have_every_kind_and_faisss_graphs_find_nothing_on_raw_vectors(curves: Path) -> None:
    figures = json.loads(curves.read_text())["figures"]
    recalls: dict[str, list[float]] = {}
    for figure in figures:
        if figure["part"] == "curves" and figure["unit"] == "recall@10":
            recalls.setdefault(figure["measure"].rpartition(", ")[0], []).append(figure["value"])
            low, high = figure["latency_ms"]
            assert 0 < low <= high
    assert {f"gaussearch {kind}" for kind in ("flat", "fastscan", "ivf-fastscan", "hnsw")} < recalls.keys()
    assert recalls["gaussearch flat"] == [1.0]
    assert max(recalls["FAISS IndexFlatIP"]) >= 0.99
    assert max(recalls["FAISS HNSW, centred and lengthened"]) >= 0.99
    assert {figure["setting"] for figure in figures if figure["part"] == "growth"} >= {"300 documents", "600 documents"}
    for name in ("build", "index", "peak memory"):
        assert all(figure["value"] > 0 for figure in figures if figure["measure"].endswith(f": {name}"))


def test_curves_are_drawn(curves: Path, tmp_path: Path) -> None:
    plots = [tmp_path / "curves.svg", tmp_path / "growth.svg"]
    command = [sys.executable, str(BENCHMARK.with_name("benchmark_plot.py")), str(curves)]
    subprocess.run([*command, "--curves", str(plots[0]), "--growth", str(plots[1])], check=True, timeout=120)
    first = [plot.read_bytes() for plot in plots]
    assert all(drawn.startswith(b"<?xml") and b"</svg>" in drawn for drawn in first)
    subprocess.run([*command, "--curves", str(plots[0]), "--growth", str(plots[1])], check=True, timeout=120)
    assert [plot.read_bytes() for plot in plots] == first


def test_a_made_corpus_is_like_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of the mixture have the moments of what it was fitted to, and are the same each time."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    data_module = importlib.import_module("benchmark_data")
    data = data_module.Data.read(None, None)
    _, means, variances = data.arrays(20_000)
    for made, source in ((means, data.means), (np.log(variances), np.log(data.variances))):
        np.testing.assert_allclose(made.mean(axis=0), source.mean(axis=0), atol=0.06 * float(source.std()))
        np.testing.assert_allclose(made.std(axis=0), source.std(axis=0), rtol=0.15)
    again = next(iter(data.chunks(20_000)))
    np.testing.assert_array_equal(again.means, means[: len(again.means)])
    assert len(data.queries_about(len(data), 5)) == len(data.queries)
    assert data.queries_about(20_000, 50).means.shape == (50, data.k)


@pytest.mark.parametrize("arguments", [("--parts", "engine,nothing"), ("--documents", "0"), ("--seconds", "-1")])
def test_a_mistaken_option_is_refused_before_anything_runs(arguments: tuple[str, str]) -> None:
    done = run_benchmark(*arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr
