"""Joining a cluster of Ray, starting one, and what is said where neither can be done."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import psutil
import pytest
import typer
from typer.testing import CliRunner

from index.distributed.ray_session import address_of, ray_session
from index.errors import ClusterError
from service.ray_option import RayCommand, RayOption
from tests.ray_cluster import ray_environment

ROOT = Path(__file__).parent.parent


def test_ray_is_imported_by_nothing_that_does_not_ask_for_it() -> None:
    program = "import sys, index, service.cli, index.distributed.ray_session; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_without_ray_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"Ray is not installed: pip install 'gaussearch\[ray\]'"), ray_session():
        pass


def test_the_cluster_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_of("") == "local"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert address_of("") == "127.0.0.1:6379"
    assert address_of("auto") == "auto"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_named(address: str) -> None:
    with ray_environment(), pytest.raises(ClusterError, match=f"{address} cannot be joined: .*refused"):
        ray_session(address).__enter__()


def test_a_cluster_that_is_started_here_listens_on_loopback_alone_and_ends_with_the_block() -> None:
    with ray_environment(), ray_session() as ray:
        started = psutil.Process().children(recursive=True)
        assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
        hosts = {
            connection.laddr.ip
            for process in started
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        with ray_session("127.0.0.1:1") as again:
            assert again.is_initialized()
        assert ray.is_initialized()
    assert hosts
    assert hosts <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert not ray.is_initialized()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not [process for process in alive if process.name() in ("raylet", "gcs_server")]


@pytest.mark.parametrize(
    ("arguments", "sources", "given"),
    [
        (["a"], ["a"], None),
        (["a", "--ray"], ["a"], ""),
        (["--ray", "a"], ["a"], ""),
        (["a", "--ray", "--name", "x"], ["a"], ""),
        (["--ray", "127.0.0.1:6379", "a"], ["a"], "127.0.0.1:6379"),
        (["--ray", "ray://head:10001", "a"], ["a"], "ray://head:10001"),
        (["--ray=head:6379", "a"], ["a"], "head:6379"),
        (["--ray", "auto", "a"], ["a"], "auto"),
        (["a", "--", "--ray"], ["a", "--ray"], None),
    ],
)
def test_the_value_of_the_option_may_be_left_out(arguments: list[str], sources: list[str], given: str | None) -> None:
    app, found = typer.Typer(), []

    @app.command(cls=RayCommand)
    def command(
        sources: list[str],
        ray: RayOption = None,
        name: Annotated[str, typer.Option()] = "",  # noqa: ARG001 (an option that may follow)
    ) -> None:
        found.append((sources, ray))

    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert found == [(sources, given)]
