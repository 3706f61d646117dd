"""What docs/scale.md says follows from what was measured; its arithmetic and its simulation are right."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from index.manifest import IndexKind
from tests.readme_commands import ROOT

DOCUMENT = ROOT / "docs" / "scale.md"

Import = Callable[[str], Any]


@pytest.fixture(scope="module")
def sizing(scripts: Import) -> ModuleType:
    module: ModuleType = scripts("scale_sizing")
    return module


@pytest.fixture(scope="module")
def tail(scripts: Import) -> ModuleType:
    module: ModuleType = scripts("scale_tail")
    return module


@pytest.fixture(scope="module")
def growing(scripts: Import) -> ModuleType:
    module: ModuleType = scripts("scale_constants")
    return module


def measured(documents: int, **changed: object) -> dict[str, object]:
    """An index whose documents take 1,000 bytes on disk, 100 in memory, 100 µs to build and 10 ns of a scan."""
    return {
        "documents": documents,
        "segment_bytes": 1_000 * documents,
        "shared_bytes": 5_000,
        "memory_bytes": 100 * documents,
        "build_seconds": 2.0 + 1e-4 * documents,
        "query_seconds": 1e-3 + 1e-8 * documents,
        "batch_seconds": 5e-4 + 5e-9 * documents,
        "scanned_bytes": 10,
        "candidates": 30,
        "recall": 0.96,
        **changed,
    }


@pytest.fixture(scope="module")
def constants(growing: ModuleType) -> Any:
    """Constants by which one can reckon in one's head."""
    walks = [measured(1_000_000, query_seconds=1e-3), measured(4_000_000, query_seconds=2e-3)]
    pair = [measured(1_000_000), measured(4_000_000)]
    return growing.Constants.model_validate(
        {
            "environment": {},
            "note": "made up",
            "k": 128,
            "target_recall": 0.95,
            "top_k": 10,
            "kinds": {"fastscan": pair, "ivf-fastscan": pair, "hnsw": walks},
            "wire": {"request_bytes": 2_000, "reply_bytes": 500, "merge_seconds": {1: 1e-5, 101: 2e-5}},
            "manifest_bytes": (1_000.0, 200.0),
            "verify_seconds": 1e-9,
            "latencies": {"what": "a shard", "documents": 1_000, "service": 0.01, "samples": {0.5: [0.01, 0.02]}},
        }
    )


def test_the_document_says_what_its_constants_come_to(scripts: Import, growing: ModuleType) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert scripts("scale_tables").updated(text, growing.read()) == text, "run python scripts/simulate_scale.py"
    assert CliRunner().invoke(scripts("simulate_scale").app, ["--check"]).exit_code == 0


def test_a_table_that_is_out_of_date_is_found(scripts: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripts("simulate_scale")
    stale = tmp_path / "scale.md"
    text = DOCUMENT.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| `fastscan` |"))
    stale.write_text(text.replace(row, row.replace("fastscan", "slowscan")), encoding="utf-8")
    monkeypatch.setattr(script, "DOCUMENT", stale)
    monkeypatch.setattr(script, "FIGURE", tmp_path / "tail-latency.svg")
    assert CliRunner().invoke(script.app, ["--check"]).exit_code == 1
    assert CliRunner().invoke(script.app, []).exit_code == 0
    assert stale.read_text(encoding="utf-8") == text


def test_a_document_without_a_tables_marks_is_refused(scripts: Import, growing: ModuleType) -> None:
    with pytest.raises(ValueError, match="'constants'"):
        scripts("scale_tables").updated("# How far it goes\n", growing.read())


def test_every_file_that_the_document_cites_is_there() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    cited = set(re.findall(r"`((?:index|scripts|service)/[\w/]+\.py)`", text)) | {
        path for path in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in path
    }
    assert {"index/generations.py", "tail-latency.svg"} <= cited
    assert not [path for path in cited if not any((folder / path).exists() for folder in (ROOT, DOCUMENT.parent))]


def test_the_figure_is_the_one_of_the_constants(scripts: Import, growing: ModuleType, tmp_path: Path) -> None:
    script, constants = scripts("simulate_scale"), growing.read()
    assert "(tail-latency.svg)" in DOCUMENT.read_text(encoding="utf-8")
    (axes,) = script.drawn(constants).axes
    assert len(axes.lines) == 2 * len(constants.latencies.samples)
    for line in axes.lines:
        # More shards are never earlier.
        assert (np.diff(line.get_ydata()) >= 0).all()
    script.plt.close("all")
    for name in ("first.svg", "second.svg"):
        script.save(constants, tmp_path / name)
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def test_what_was_measured_says_with_what(growing: ModuleType) -> None:
    constants = growing.read()
    assert {"date", "command", "machine", "versions"} <= set(constants.environment)
    assert constants.environment["machine"]["cores"] > 0
    assert "simulate_scale.py measure" in constants.environment["command"]
    assert set(constants.kinds) == {"flat", "fastscan", "ivf-fastscan", "hnsw"}
    # A document of k = 128 has a Gaussian of 8k bytes, whatever else it has.
    for kind, pair in constants.kinds.items():
        assert growing.Growth.of(kind, pair).disk.each > 8 * constants.k


def test_numbers_are_written_with_what_means_anything(scripts: Import) -> None:
    limits = scripts("scale_limits")
    assert [limits.shown(value) for value in (0, 0.01234, 1.96, 12.6, 1_234_567)] == [
        "0",
        "0.012",
        "2.0",
        "13",
        "1,200,000",
    ]
    assert [limits.size(value) for value in (540, 2_270, 1.3e12)] == ["540 bytes", "2.3 kB", "1.3 TB"]
    times = [limits.seconds(value) for value in (6.4e-6, 0.0987, 100, 200, 7_200, 400_000)]
    assert times == ["6.4 µs", "99 ms", "100 s", "3.3 min", "2.0 h", "4.6 days"]


def test_growth_goes_through_both_points(growing: ModuleType) -> None:
    line = growing.Line.through((100, 7.0), (300, 11.0))
    assert line == (5.0, 0.02)
    assert line.at(1_000) == pytest.approx(25.0)
    assert line.most(25.0) == pytest.approx(1_000)
    assert growing.Line.through((100, 1.0), (300, 9.0)) == (0.0, 0.03)
    assert growing.Line.through((100, 2.0), (300, 2.0)).most(3.0) == math.inf
    power = growing.Power.through((100, 1.0), (400, 2.0))
    assert power.exponent == pytest.approx(0.5)
    assert power.at(10_000) == pytest.approx(10.0)
    assert power.most(10.0) == pytest.approx(10_000)
    assert growing.Power.through((100, 2.0), (400, 1.0)).exponent == 0.0


def test_a_plan_by_hand(sizing: ModuleType, constants: Any) -> None:
    machine = sizing.Machine(
        cores=11, memory_bytes=1e12, disk_bytes=1e14, network_bytes=1e9, usable=0.5, together=0.9, busy=0.5
    )
    # Eleven cores are ten: a scan of 1 s on one takes 0.1 s, which is (1 - 0.001) / 10 ns documents.
    plan = sizing.plan(constants, IndexKind.FASTSCAN, 1_000_000_000, machine, sizing.Load(queries=10, seconds=0.1))
    assert (plan.bound, plan.shards) == ("latency: cores", 11)
    each = 1_000_000_000 / 11
    assert plan.shard_documents == pytest.approx(each)
    assert plan.memory_bytes == pytest.approx(100 * each)
    assert plan.disk_bytes == pytest.approx(1_000 * each + 5_000)
    assert plan.storage_bytes == pytest.approx(1_000 * 1e9 + 5_000)
    assert plan.latency == pytest.approx((1e-3 + 1e-8 * each) / 10)
    # 10 queries/s of 0.455 core-seconds are 4.55 cores, and 5.5 may be busy: one would do, and two are there.
    assert plan.replicas == 2
    assert plan.machines == 22
    assert plan.busy == pytest.approx(10 * (5e-4 + 5e-9 * each) / 22)
    assert plan.gathered_bytes == 10 * 11 * 2_500
    assert plan.merge == pytest.approx(1e-5 + 10 * 1e-7)
    assert plan.build_core_hours == pytest.approx((2 + 1e5) / 3600)
    assert plan.build_hours == pytest.approx(plan.build_core_hours / (11 * 22))
    assert plan.measuring_bytes == pytest.approx(100 * 1e9)
    assert plan.opening == pytest.approx(plan.disk_bytes / 1e9 + plan.disk_bytes * 1e-9 / 11)


def test_replicas_are_as_many_as_keep_cores_from_being_too_busy(sizing: ModuleType, constants: Any) -> None:
    machine = sizing.Machine(cores=11, memory_bytes=1e12, disk_bytes=1e14, together=0.9, busy=0.5)
    few, many = (
        sizing.plan(constants, IndexKind.FASTSCAN, 1_000_000_000, machine, sizing.Load(queries, 0.1))
        for queries in (10, 100)
    )
    # 100 queries/s are 45.5 cores of each shard, at half of 11 each.
    assert (few.replicas, many.replicas) == (2, 9)
    assert many.busy <= 0.5


@pytest.mark.parametrize(
    ("changed", "bound"),
    [
        ({"memory_bytes": 1e9}, "memory"),
        ({"disk_bytes": 1e10}, "disk"),
        ({"cores": 1}, "latency: cores"),
        ({"memory_rate": 1e9}, "latency: memory"),
    ],
)
def test_the_scarcest_thing_is_the_bound(
    sizing: ModuleType, constants: Any, changed: dict[str, float], bound: str
) -> None:
    plan = sizing.plan(constants, IndexKind.FASTSCAN, 1_000_000_000, sizing.Machine(**changed), sizing.Load())
    assert plan.bound == bound
    assert plan.memory_bytes <= changed.get("memory_bytes", math.inf)
    assert 2 * plan.disk_bytes <= changed.get("disk_bytes", math.inf) * 1.01
    assert plan.latency <= 0.1 * (1 + 1e-9)


def test_a_graph_is_of_one_machine_and_lists_of_one_file(sizing: ModuleType, constants: Any) -> None:
    machine, load = sizing.Machine(memory_bytes=1e12, usable=1.0, disk_bytes=1e14), sizing.Load()
    assert sizing.plan(constants, IndexKind.HNSW, 100_000_000, machine, load).shards == 1
    assert "one machine" in sizing.plan(constants, IndexKind.HNSW, 2_000_000_000, sizing.Machine(), load)
    assert "2,147,483,647" in sizing.plan(constants, IndexKind.HNSW, 3_000_000_000, machine, load)
    assert sizing.plan(constants, IndexKind.IVF_FASTSCAN, 4_000_000_000, machine, load).shards > 1
    assert "4,294,967,296" in sizing.plan(constants, IndexKind.IVF_FASTSCAN, 5_000_000_000, machine, load)


def test_segments_and_their_manifest(sizing: ModuleType) -> None:
    assert sizing.segments_of(1_000_001, 10_000, (1_000.0, 200.0)) == (101, 21_200.0)


def test_the_longest_of_exponential_times_is_the_harmonic_number(tail: ModuleType) -> None:
    # What lies in the middle of each of a million equal parts of the distribution.
    samples = -np.log1p(-(np.arange(1_000_000) + 0.5) / 1_000_000)
    for shards in (1, 2, 10, 100):
        assert tail.expected_maximum(samples, shards) == pytest.approx(tail.harmonic(shards), rel=1e-3)
        found = tail.scatter(samples, shards, tail.Policy(), seed=1, searches=40_000)
        # Its standard deviation is below pi / sqrt(6), and this is five of its mean's.
        assert found.latencies.mean() == pytest.approx(tail.harmonic(shards), abs=5 * 1.2826 / 200)
        assert (found.requests, found.coverage, found.complete) == (1.0, 1.0, 1.0)


def test_percentiles_of_the_longest_are_order_statistics(tail: ModuleType) -> None:
    samples = np.arange(1, 1_001) / 1_000
    for shards, share in ((1, 0.99), (10, 0.5), (100, 0.5), (100, 0.99)):
        closed = share ** (1 / shards)
        assert tail.maximum_quantile(samples, shards, share) == pytest.approx(closed, abs=1e-3)
        found = tail.scatter(samples, shards, tail.Policy(), seed=2)
        # Between what shares a little less and a little more have: five standard deviations of 20,000 searches.
        slack = 5 * math.sqrt(share * (1 - share) / 20_000)
        low, high = (tail.maximum_quantile(samples, shards, each) for each in (share - slack, min(1.0, share + slack)))
        assert low <= found.quantile(share) <= high


def test_asking_again_is_the_shorter_of_two(tail: ModuleType) -> None:
    # Nine in ten take 1, one in ten 10: asked again after 2 it takes 3 unless that is late, too.
    samples = np.array([1.0] * 9 + [10.0])
    found = tail.scatter(samples, 1, tail.Policy(hedge=2.0), seed=3, searches=100_000)
    assert set(found.latencies.tolist()) == {1.0, 3.0, 10.0}
    assert found.requests == pytest.approx(1.1, abs=0.005)
    assert (found.latencies == 10.0).mean() == pytest.approx(0.01, abs=0.0016)
    assert (found.coverage, found.complete) == (1.0, 1.0)


def test_cutting_off_answers_from_what_has_come(tail: ModuleType) -> None:
    samples = np.array([1.0] * 9 + [10.0])
    found = tail.scatter(samples, 10, tail.Policy(cut=2.0), seed=4)
    assert found.latencies.max() == 2.0
    assert found.coverage == pytest.approx(0.9, abs=0.004)
    assert found.complete == pytest.approx(0.9**10, abs=0.017)
    assert found.requests == 1.0


def test_the_same_seed_draws_the_same(tail: ModuleType) -> None:
    samples = np.random.default_rng(0).exponential(size=1_000)
    first, again, other = (tail.scatter(samples, 10, tail.Policy(), seed=seed).latencies for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_search_waits_for_those_that_came_before_it(scripts: Import) -> None:
    queued = scripts("scale_measure").queued
    found = queued(np.array([1.0, 2.0, 2.5, 10.0]), np.array([2.0, 1.0, 1.0, 0.5]))
    # The first until 3, the second until 4, the third until 5; the last comes when nobody is there.
    np.testing.assert_allclose(found, [2.0, 2.0, 2.5, 0.5])


def test_searches_that_come_at_random_wait_as_long_as_the_theory_of_queues_says(scripts: Import) -> None:
    rng, busy = np.random.default_rng(5), 0.6
    due = np.cumsum(rng.exponential(1 / busy, 400_000))
    found = scripts("scale_measure").queued(due, rng.exponential(1.0, len(due)))
    # Exponential times of mean 1 (M/M/1): a latency is exponential, too, of mean 1 / (1 - busy).
    assert found.mean() == pytest.approx(1 / (1 - busy), rel=0.05)
    assert np.quantile(found, 0.99) == pytest.approx(-math.log(0.01) / (1 - busy), rel=0.1)


@pytest.mark.timeout(600)
def test_everything_is_measured_anew_by_one_command(
    scripts: Import, growing: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process for each index, which the benchmark's tests start, too.
    monkeypatch.setattr(
        scripts("scale_measure"), "memory_of", lambda directory, _: 100 * directory.manifest().documents
    )
    monkeypatch.setattr(scripts("scale_measure"), "QUERIES", 200)
    monkeypatch.setattr(scripts("scale_measure"), "KINDS", (IndexKind.FLAT, IndexKind.FASTSCAN, IndexKind.HNSW))
    latencies = {"what": "a shard", "documents": 5, "service": 0.5, "samples": {"0.6": [0.5, 1.0]}}
    given = tmp_path / "latencies.json"
    given.write_text(json.dumps(latencies))
    to = tmp_path / "constants.json"
    arguments = ["measure", "--documents", "4000", "--arrivals", "16", "--to", str(to), "--latencies", str(given)]
    ran = CliRunner().invoke(scripts("simulate_scale").app, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    found = growing.read(to)
    assert found.latencies.samples == {0.6: [0.5, 1.0]}
    assert {kind: [each.documents for each in pair] for kind, pair in found.kinds.items()} == {
        "flat": [1000, 4000],
        "fastscan": [1000, 4000],
        "hnsw": [250, 1000],
    }
    # Bytes do not depend on the machine.
    disk = growing.Growth.of(IndexKind.FLAT, found.kinds[IndexKind.FLAT]).disk.each
    assert disk == pytest.approx(growing.Growth.of(IndexKind.FLAT, growing.read().kinds["flat"]).disk.each, rel=0.01)
    assert re.search(r'"0.6": \[0\.5,1\.0\]', to.read_text())
