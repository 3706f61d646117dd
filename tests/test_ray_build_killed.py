"""Builds on a Ray cluster of which something dies: the driver, or a node; and what machines see and have."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import index.distributed.ray_work
from index import BuildOptions, IndexDirectory, build_index
from index.distributed.ray_place import RayOptions, ray_place
from index.distributed.segment_tasks import CorpusFiles, read_slice
from index.distributed.sites import BuildSite
from index.encoding import Encoding
from index.errors import ClusterError, DeviceUnavailableError
from index.manifest import IndexKind
from index.rows import Columns, VarianceAs
from index.staging import BuildPlan, Staging
from tests.conftest import random_gaussians, write_corpus
from tests.ray_builds import contents
from tests.ray_cluster import RayNodes, ray_nodes

pytestmark = pytest.mark.timeout(600)

PLAN = BuildPlan(corpus="0" * 64, encoding=Encoding.SIMPLIFIED, kind=IndexKind.FLAT, segment_docs=10, on_error="stop")
ROOT = Path(__file__).parent.parent
SEGMENTS = 80


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with pytest.MonkeyPatch.context() as patch:
        # How soon a node that is gone is known to be.
        for name, value in (("period_ms", "500"), ("initial_delay_ms", "0"), ("failure_threshold", "3")):
            patch.setenv(f"RAY_health_check_{name}", value)
        with ray_nodes(1, 1) as nodes:
            yield nodes


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.parquet", random_gaussians(10 * SEGMENTS, 2))


def command(nodes: RayNodes, corpus: Path, directory: IndexDirectory) -> list[str]:
    """The command, with few tasks at a time: there is something left to do when it is killed."""
    program = "from service.cli import main; main()"
    options = ["--segment-docs", "10", "--ray", nodes.address, "--ray-tasks", "1"]
    return [sys.executable, "-c", program, "build", str(corpus), "--index", str(directory.path), *options]


def test_a_driver_that_is_killed_has_lost_nothing_that_was_finished(
    nodes: RayNodes, corpus: Path, tmp_path: Path
) -> None:
    here, there = IndexDirectory(tmp_path / "here"), IndexDirectory(tmp_path / "there")
    build_index([corpus], here, BuildOptions(segment_docs=10))
    driver = subprocess.Popen(command(nodes, corpus, there), cwd=ROOT, stderr=subprocess.DEVNULL)
    looking = threading.Event()
    while not (there.staging / "00004.json").exists():
        assert driver.poll() is None
        looking.wait(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert not there.current_file.exists()
    finished = sorted(there.staging.glob("[0-9]*.json"))[:5]
    before = {file: file.stat().st_ino for file in finished}
    written = {file: file.stat().st_ino for file in there.segments.glob("*-0000[0-4]/gaussians.npy")}
    assert (len(before), len(written)) == (5, 5)
    inodes: dict[Path, int] = {}

    # As long as the build runs, that is: what is finished is not written again.
    def resumed(*arguments: Any) -> Any:
        inodes.update({file: file.stat().st_ino for file in [*before, *written]})
        return original(*arguments)

    original = index.distributed.ray_work.RayWork.encode
    with pytest.MonkeyPatch.context() as patch, nodes.connected(), ray_place(RayOptions()) as place:
        patch.setattr(index.distributed.ray_work.RayWork, "encode", resumed)
        summary = build_index([corpus], there, BuildOptions(segment_docs=10), place=place)
    assert summary.resumed_documents >= 50
    assert inodes == before | written
    assert contents(there) == contents(here)


def test_what_a_node_was_doing_when_it_died_is_done_by_another(
    nodes: RayNodes, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = IndexDirectory(tmp_path / "here"), IndexDirectory(tmp_path / "there")
    build_index([corpus], here, BuildOptions(segment_docs=10))
    node = nodes.add(1)
    monkeypatch.setattr(index.distributed.ray_work, "read_slice", with_its_node(node.node_id, tmp_path / "killed"))
    with nodes.connected(), ray_place(RayOptions()) as place:
        build_index([corpus], there, BuildOptions(segment_docs=10), place=place)
    assert (tmp_path / "killed").exists()
    assert contents(there) == contents(here)


def with_its_node(node_id: str, marker: Path) -> Callable[..., Any]:
    """read_slice, which ends the node of that id where it comes to run there: all wait until it does."""

    def killing(*arguments: Any) -> Any:
        import ray

        if ray.get_runtime_context().get_node_id() == node_id:
            marker.touch()
            # The raylet, and what runs there.
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        while not marker.exists():
            threading.Event().wait(0.05)
        return read_slice(*arguments)

    return killing


def test_where_there_are_gpus_a_task_that_encodes_is_given_one(nodes: RayNodes, corpus: Path, tmp_path: Path) -> None:
    directory, node = IndexDirectory(tmp_path / "index"), nodes.add(1, num_gpus=1)
    with nodes.connected(), ray_place(RayOptions(gpus=0.5)) as place:
        # Ray believes that there is one; torch, in the task that it was given to, does not.
        with pytest.raises(DeviceUnavailableError, match="cuda"):
            build_index([corpus], directory, BuildOptions(segment_docs=100), place=place)
        summary = build_index([corpus], directory, BuildOptions(segment_docs=100, device="cpu"), place=place)
    assert summary.resumed_documents == 10 * SEGMENTS
    nodes.remove(node)


def test_a_node_that_does_not_see_a_source_or_the_index_is_named(tmp_path: Path) -> None:
    node, files = os.uname().nodename, (Path("corpus.parquet"),)
    unseen = CorpusFiles(files, tmp_path / "elsewhere", Columns(), VarianceAs.VARIANCE, skips=False)
    with pytest.raises(
        ClusterError, match=rf"{node}.* does not see {tmp_path}/elsewhere/corpus\.parquet: give sources"
    ):
        unseen.seen(files).__enter__()
    directory = IndexDirectory(tmp_path / "index")
    with directory.lock():
        staging = Staging.open(directory, PLAN, restart=False)
        (staging.path / "plan.json").unlink()
        with pytest.raises(ClusterError, match=rf"{node}.* does not see {tmp_path}/index, where .*\(s3://"):
            BuildSite.of(staging).workspace().__enter__()
