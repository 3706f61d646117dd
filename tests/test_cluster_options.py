"""What `gaussearch serve --ray` and a configuration of Ray Serve are told; what is refused, before anything starts."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.serve import Application
from typer.testing import CliRunner, Result

from index.errors import ClusterError, GaussearchError, InvalidOptionError
from service.cli import app
from service.cluster import app as cluster_app
from service.cluster import run
from service.cluster.options import ClusterSettings, ServeOptions
from service.cluster.plan import Node
from service.exposure import ExposedError
from service.settings import ServiceSettings
from tests.serving import PATIENCE, Served, wait_until


def serve(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)], env={"COLUMNS": "200"})


def test_no_setting_of_a_cluster_is_one_of_a_process() -> None:
    assert not set(ClusterSettings.model_fields) & set(ServiceSettings.model_fields)
    assert set(ServeOptions.model_fields) == set(ClusterSettings.model_fields) | set(ServiceSettings.model_fields)


@pytest.mark.parametrize("option", [("--shards", 2), ("--replica-gpus", 0.5), ("--keep-serving",), ("--plan",)])
def test_what_is_of_a_cluster_takes_one(served: Served, option: tuple[object, ...]) -> None:
    refused = serve("--index", served.directory.path, *option)
    assert refused.exit_code == 2
    assert f"{option[0]} is of a service on a Ray cluster: give --ray, too" in refused.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--admin-key", "a" * 32], "a cluster takes no writes over HTTP"),
        (["--port", "0"], "port is 0"),
        (["--workers", "2"], "give ingress-replicas"),
        (["--host", "0.0.0.0"], "there is no search key"),  # noqa: S104
        (["--ingress-cpus", "many"], "--ingress-cpus"),
        (["--replica-cpus", "0"], "--replica-cpus"),
    ],
)
def test_what_a_cluster_does_not_do_is_refused_before_it_is_started(
    served: Served, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    def starts(*_: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(run, "ray_session", starts)
    refused = serve("--index", served.directory.path, "--ray", *options)
    assert refused.exit_code in (1, 2)
    assert said in refused.output


def test_an_index_that_is_not_there_is_said_before_a_cluster_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "ray_session", lambda _: pytest.fail("a cluster was started"))
    refused = serve("--index", tmp_path / "none", "--ray")
    assert refused.exit_code == 1
    assert "index_not_found" in refused.output


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """The machines that `build` finds."""
    found = [Node(4.0, 0.0, 8 * 2**30)]
    monkeypatch.setattr(cluster_app, "machines", lambda: found)
    return found


def arguments(served: Served, **more: Any) -> dict[str, Any]:
    return {"index": str(served.directory.path), **more}


@pytest.mark.usefixtures("nodes")
def test_ray_serve_is_told_what_to_run_by_a_configuration(served: Served) -> None:
    # As YAML gives them, or an environment.
    built = cluster_app.build(arguments(served, shards="1", replicas=2, replica_cpus=0.5, replica_memory=10**8))
    ingress = built._bound_deployment
    assert ingress.name == "ingress"
    (shard,) = [each._bound_deployment for each in ingress.init_args if isinstance(each, Application)]
    assert (shard.name, shard.num_replicas) == ("shard-0", 2)
    assert shard.ray_actor_options == {"num_cpus": 0.5, "num_gpus": 0.0, "memory": 10**8}
    arguments_of_shard: tuple[Any, ...] = shard.init_args
    options, number, shards, threads = arguments_of_shard
    assert (options.index, number, shards, threads) == (str(served.directory.path), 0, 1, 1)
    given = cluster_app.build(arguments(served, shards=1, threads=3))._bound_deployment
    (of_three,) = [each._bound_deployment for each in given.init_args if isinstance(each, Application)]
    assert of_three.init_args[-1] == 3


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"shard": 2}, InvalidOptionError, "there is no setting 'shard'"),
        ({"shards": "few"}, InvalidOptionError, "shards: "),
        ({"shards": 2}, InvalidOptionError, "the index has 1 segments"),
        ({"host": "0.0.0.0"}, ExposedError, "no search key"),  # noqa: S104
        ({"admin_key": "a" * 32}, InvalidOptionError, "takes no writes over HTTP"),
        ({"workers": 2}, InvalidOptionError, "give ingress-replicas"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(
    served: Served, given: dict[str, Any], error: type[GaussearchError], said: str
) -> None:
    with pytest.raises(error, match=said):
        cluster_app.build(arguments(served, **given))


@pytest.mark.usefixtures("nodes")
def test_shards_are_told_no_keys(served: Served, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k" * 32)
    given = {"api_key": "s" * 32, "api_key_file": str(tmp_path / "keys"), "shards": 1}
    ingress = cluster_app.build(arguments(served, **given))._bound_deployment
    (shard,) = [each._bound_deployment for each in ingress.init_args if isinstance(each, Application)]
    assert b"s" * 32 in pickle.dumps(ingress.init_args[:2])
    assert b"s" * 32 not in pickle.dumps(shard.init_args)


@pytest.mark.usefixtures("nodes")
def test_a_configuration_that_forgets_where_ray_serve_listens_takes_a_key_all_the_same(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0"))  # noqa: S104
    monkeypatch.setattr(cluster_app, "_get_global_client", lambda **_: running)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ExposedError, match="no search key"):
        cluster_app.build(arguments(served))
    cluster_app.build(arguments(served, api_key="s" * 32))
    running.http_config.host = None
    cluster_app.build(arguments(served))


def test_where_ray_serve_listens_already_has_to_be_where_the_service_is_to() -> None:
    wanted = {"host": "127.0.0.1", "port": 8080, "ssl_certfile": None, "ssl_keyfile": None}
    run._require_same(SimpleNamespace(**wanted), wanted)
    # Where everybody may reach it, whatever was checked of this command's options.
    for other in ({"host": "0.0.0.0"}, {"port": 8000}, {"ssl_certfile": "a.pem"}):  # noqa: S104
        with pytest.raises(ClusterError, match=r"listens on .* with .*certificate: give --host"):
            run._require_same(SimpleNamespace(**wanted | other), wanted)


def test_names_are_true_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = ServeOptions(index="index", model="head", api_key_file=Path("keys"), cache=Path("/cache"))
    its = run._for_other_processes(told)
    assert (its.index, its.model, its.api_key_file, its.cache) == (
        tmp_path / "index",
        str(tmp_path / "head"),
        tmp_path / "keys",
        Path("/cache"),
    )
    for model in ("package:head", "hub:someone/head", None):
        assert run._for_other_processes(told.model_copy(update={"model": model})).model == model
    assert run._for_other_processes(told.model_copy(update={"index": "s3://bucket/index"})).index == "s3://bucket/index"


def test_a_service_that_runs_ends_in_order_and_one_that_starts_at_once() -> None:
    told = run._Told()
    with pytest.raises(KeyboardInterrupt):
        told.note()
    waiting = threading.Thread(target=told.wait)
    waiting.start()
    wait_until(lambda: told._waits)
    told.note()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    with pytest.raises(KeyboardInterrupt):
        told.note()


def test_ray_is_not_imported_before_it_is_asked_for() -> None:
    code = "import sys, service.cli, service.server, service.app, index; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
