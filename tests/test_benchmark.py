"""The README's benchmarks from end to end at tiny sizes: what they say and check, never how fast anything was."""

import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import torch

from tests.readme_commands import BASH, ROOT, run

BENCHMARK = ROOT / "scripts" / "benchmark.py"
LINES = [line for body in BASH for line in body.splitlines() if "scripts/benchmark" in line]
MEASURING = {line.split()[3]: line for line in LINES if "benchmark.py --parts" in line}
"""The README's commands by the parts that they measure."""
DRAWING = {re.sub(r".*--(\w+) .*", r"\1", line): line for line in LINES if "benchmark_plot.py" in line}
"""And those that draw what a part has measured."""
SIZES = (
    "--documents 300 --memory-documents 200 600 --memory-segment 200 --kinds-documents 400"
    " --growth-documents 300 600 --writes 20 --seconds 0.01 --rounds 2"
)
WITHOUT_DEVICE = {"encoding", "gpu"}
"""Parts that a machine without a CUDA device is excused from."""
NOISY = {"latency added to the engine's", "latency added, p50", "share of scoring all but 10 of the candidates"}
"""Differences of two times, which noise alone can make negative at this size."""

# A part is a process that imports everything, and so is each contender of the curves.
pytestmark = pytest.mark.timeout(600)


class Ran(NamedTuple):
    """What one of the README's commands has left: its folder, with scratch/ in it, and its report."""

    folder: Path
    parts: set[str]
    report: dict[str, Any]


@pytest.fixture(scope="module", params=MEASURING)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One of the README's commands, of little."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "scripts").symlink_to(BENCHMARK.parent)
    (folder / "scratch").mkdir()
    run(f"{MEASURING[request.param]} {SIZES} --scratch {folder / 'scratch'}", folder)
    (report,) = folder.glob("*.json")
    return Ran(folder, set(request.param.split(",")), json.loads(report.read_text()))


def of_parts(*commands: str) -> pytest.MarkDecorator:
    """For a test that looks at what some of the commands have left."""
    return pytest.mark.parametrize("ran", commands, indirect=True)


ENGINE = of_parts("quality,engine,service,build")
CHANGES = of_parts("writes,filters")


def figures_of(ran: Ran, part: str, setting: str) -> dict[str, dict[str, Any]]:
    return {f["measure"]: f for f in ran.report["figures"] if (f["part"], f["setting"]) == (part, setting)}


def test_every_command_of_the_readme_that_measures_or_draws_is_run_here() -> None:
    assert len(MEASURING) + len(DRAWING) == len(LINES) > 6
    assert DRAWING.keys() <= MEASURING.keys()


def test_the_report_says_where_and_with_what_it_was_made(ran: Ran) -> None:
    report = ran.report
    assert report["machine"]["cores"] == os.cpu_count()
    assert report["machine"]["cpu"]
    assert {"python", "torch", "numpy", "gaussearch"} <= set(report["versions"])
    assert {"faiss-cpu", "faiss-gpu"} & set(report["versions"])
    assert report["command"].startswith("python scripts/benchmark.py --parts ")
    assert report["arguments"]["documents"] == 300
    assert report["arguments"]["k"] == 128
    assert report["date"].endswith("+00:00")


def test_every_part_has_run_or_says_why_not(ran: Ran) -> None:
    found = {figure["part"] for figure in ran.report["figures"]}
    skipped = {reason.partition(":")[0] for reason in ran.report["skipped"]}
    assert found | skipped == ran.parts
    assert not found & skipped
    assert skipped <= WITHOUT_DEVICE


def test_every_figure_is_a_positive_number_with_quartiles_around_it(ran: Ran) -> None:
    for figure in ran.report["figures"]:
        if figure["measure"] in NOISY or figure["unit"] == "recall@10":
            continue
        assert figure["value"] > 0, figure
        if figure["quartiles"]:
            low, high = figure["quartiles"]
            assert low <= figure["value"] <= high, figure
        if figure["latency_ms"]:
            assert 0 < figure["latency_ms"][0] <= figure["latency_ms"][1], figure


def test_a_target_is_met_exactly_where_the_value_reaches_it(ran: Ran) -> None:
    with_target = [figure for figure in ran.report["figures"] if figure["target"]]
    # Curves are looked at, and devices may be missing; of clusters there are memory and results.
    fewest = 0 if ran.parts & {"curves", "growth", *WITHOUT_DEVICE} else 3 if "ray-serve" in ran.parts else 6
    assert len(with_target) >= fewest
    for figure in with_target:
        sign, limit = figure["target"].split()
        assert figure["met"] == (figure["value"] >= float(limit) if sign == "≥" else figure["value"] <= float(limit))


def test_the_markdown_holds_every_figure(ran: Ran) -> None:
    for path in ran.folder.glob("*.md"):
        lines = path.read_text().splitlines()
        rows = [line for line in lines if line.startswith("| ") and "p50 / p99" not in line]
        assert len(rows) == len(ran.report["figures"])
        assert {line.count("|") for line in lines if line.startswith("|")} <= {7}


def test_nothing_is_left_behind(ran: Ran) -> None:
    assert list((ran.folder / "scratch").iterdir()) == []
    running = psutil.process_iter(["pid", "cmdline"])
    left = [each.info for each in running if any(str(ran.folder) in word for word in each.info["cmdline"] or [])]
    assert left == []


@ENGINE
@pytest.mark.parametrize(
    "setting", ["batch 1, 1 thread", "batch 1, all threads", "batch 32, all threads", "batch 128, all threads"]
)
def test_the_engine_is_held_against_faiss_at_its_default_and_with_blas(ran: Ran, setting: str) -> None:
    figures = figures_of(ran, "engine", setting)
    assert figures["gaussearch over IndexFlatIP"]["target"] == "≥ 0.9"
    assert figures["gaussearch over IndexFlatIP, BLAS forced"]["target"] == "≥ 1"
    assert {"gaussearch", "IndexFlatIP", "IndexFlatIP, BLAS forced"} <= set(figures)
    assert {"IndexFlatIP, folded over simplified", "gaussearch, folded over simplified"} <= set(figures)


@ENGINE
def test_what_is_compared_finds_the_same_documents(ran: Ran) -> None:
    assert figures_of(ran, "engine", "all queries")["IndexFlatIP's top 10 in ours"]["met"]
    checks = figures_of(ran, "service", "all queries")
    assert checks["rankings equal to the engine's"]["value"] == 1.0
    assert checks["naive service's top 10 in the engine's"]["met"]


@ENGINE
def test_encodings_take_as_many_bytes_as_their_widths_say_and_are_scanned_folded(ran: Ran) -> None:
    assert figures_of(ran, "engine", "simplified")["vectors on disk"]["value"] == 4 * (3 * 128 + 1)
    assert figures_of(ran, "engine", "folded")["vectors on disk"]["value"] == 4 * (2 * 128 + 1)
    assert figures_of(ran, "engine", "either encoding")["scanned"]["value"] == 4 * (2 * 128 + 1)


@ENGINE
@pytest.mark.parametrize("concurrency", [1, 16, 64])
def test_the_service_is_held_against_the_engine_and_the_naive_service(ran: Ran, concurrency: int) -> None:
    figures = figures_of(ran, "service", f"concurrency {concurrency}")
    assert (figures["gaussearch over the engine"]["target"] is not None) == (concurrency >= 16)
    assert (figures["gaussearch over the naive service"]["target"] is not None) == (concurrency == 16)
    assert ("latency added to the engine's" in figures) == (concurrency == 1)


def test_a_corpus_of_ones_own_is_used_as_it_is(tmp_path: Path, sample: Path) -> None:
    options = f"--corpus {sample / 'queries.parquet'} --parts engine --seconds 0.001 --rounds 1"
    run(f"python {BENCHMARK} {options} --json figures.json --scratch {tmp_path}", tmp_path)
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["arguments"]["documents"] == 400
    assert report["arguments"]["corpus"] == "queries.parquet"
    assert {figure["part"] for figure in report["figures"]} == {"engine"}


@of_parts("curves")
def test_curves_have_every_kind_and_faisss_graphs_find_nothing_on_raw_vectors(ran: Ran) -> None:
    recalls: dict[str, list[float]] = {}
    for figure in ran.report["figures"]:
        if figure["unit"] == "recall@10":
            recalls.setdefault(figure["measure"].rpartition(", ")[0], []).append(figure["value"])
    assert {f"gaussearch {kind}" for kind in ("flat", "fastscan", "ivf-fastscan", "hnsw")} < recalls.keys()
    assert recalls["gaussearch flat"] == [1.0]
    assert max(recalls["FAISS IndexFlatIP"]) >= 0.99
    assert max(recalls["FAISS HNSW, centred and lengthened"]) >= 0.99
    require_costs(ran)


@of_parts("growth")
def test_growth_is_that_of_several_sizes(ran: Ran) -> None:
    assert {figure["setting"] for figure in ran.report["figures"]} >= {"300 documents", "600 documents"}
    require_costs(ran)


def require_costs(ran: Ran) -> None:
    for name in ("build", "index", "peak memory"):
        found = [figure["value"] for figure in ran.report["figures"] if figure["measure"].endswith(f": {name}")]
        assert found
        assert min(found) > 0


@of_parts(*DRAWING)
def test_curves_are_drawn_the_same_each_time(ran: Ran) -> None:
    (part,) = ran.parts
    drawn = []
    for _ in range(2):
        run(DRAWING[part], ran.folder)
        (plot,) = ran.folder.glob("docs/*.svg")
        drawn.append(plot.read_bytes())
        plot.unlink()
    assert drawn[0].startswith(b"<?xml")
    assert b"</svg>" in drawn[0]
    assert drawn[0] == drawn[1]


@CHANGES
@pytest.mark.parametrize("kind", ["flat", "fastscan"])
def test_writes_are_held_against_sqlite_and_against_each_other(ran: Ran, kind: str) -> None:
    figures = figures_of(ran, "writes", kind)
    assert {"one document, over SQLite", "batches of 1,000, over SQLite", "16 clients over 1"} <= set(figures)
    # Sixteen that wait are published together; one at a time, each would be alone.
    assert 1 / 16 <= figures["publications per request, 16 clients"]["value"] < 1
    alone = figures_of(ran, "writes", f"{kind}, 20 writes of one document, 1 client")
    assert alone["until on disk and searched"]["latency_ms"]
    assert ("memory after over before, anonymous" in alone) == Path("/proc/self/status").exists()


@CHANGES
@pytest.mark.parametrize("kind", ["flat", "fastscan"])
def test_searches_meet_writes_and_an_index_is_compacted(ran: Ran, kind: str) -> None:
    searches = figures_of(ran, "writes", f"{kind}, searches of 4 clients")
    assert {"p50 under writes over without", "p99 under writes over without"} <= set(searches)
    assert searches["writes meanwhile"]["value"] > 0
    compaction = figures_of(ran, "writes", f"{kind}, compaction")
    assert {"time of a document, compact --retrain, 1 in 10 deleted, over build"} <= set(compaction)


@CHANGES
@pytest.mark.parametrize("kind", ["flat", "fastscan"])
def test_filters_and_deletions_are_held_against_none_and_against_faiss(ran: Ran, kind: str) -> None:
    for share in ("0.5 of", "0.1 of", "0.01 of", "0.001 of", "0.0001 of", "the most certain 0.1 of"):
        figures = figures_of(ran, "filters", f"{kind}, {share} the documents")
        assert {"time with the filter over without", f"{kind} over IndexFlatIP, filtered"} <= set(figures)
    recalls = figures_of(ran, "filters", f"{kind}, recall@10")
    # So few documents that all are scored, whatever the kind, but for those that no filter selects.
    assert all(figure["value"] == 1.0 for name, figure in recalls.items() if name != "no filter")
    assert (recalls["no filter"]["target"] is not None) == (kind == "flat")
    assert recalls["no filter"]["value"] == 1.0 or kind == "fastscan"
    assert figures_of(ran, "filters", f"{kind}, deletions")["recall@10"]["value"] == 1.0
    assert figures_of(ran, "filters", f"{kind}, first evaluation")["a filter of text"]["unit"] == "ms"


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


def test_the_part_for_gpus_measures_what_it_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the CPU, on which it goes through the same steps."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    part = importlib.import_module("benchmark_gpu")
    monkeypatch.setattr(part, "READ_BYTES", 1 << 16)
    data = importlib.import_module("benchmark_data").Data.read(None, None)
    found = list(part.gpu_part(data, [300], tmp_path, 0.01, 2, torch.device("cpu")))
    assert all(figure.part == "gpu" and figure.value > 0 for figure in found)
    settings = {f"300 documents, {kind}, batch {batch}" for kind in ("float32", "bfloat16") for batch in (1, 32, 128)}
    assert {figure.setting for figure in found} == settings | {"the device"}
    of_one = [figure for figure in found if figure.setting == min(settings)]
    rates = {figure.measure: figure.value for figure in of_one if figure.unit == "queries/s"}
    ratios = {figure.measure: figure.value for figure in of_one if figure.unit == "ratio"}
    assert set(rates) == {"search", "scan", "product", "the device's limit"}
    assert ratios["scan over the device's limit"] == pytest.approx(rates["scan"] / rates["the device's limit"])


@pytest.mark.parametrize(
    "arguments", [("--parts", "engine,nothing"), ("--documents", "0"), ("--seconds", "-1"), ("--writes", "0")]
)
def test_a_mistaken_option_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("benchmark_data.Data.read", None)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("benchmark").main()
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err
