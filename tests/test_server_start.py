"""A server that cannot start says why in one line and ends with status 1; settings that cannot be are named."""

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from index import IndexDirectory
from service import cli, live_index, server
from service.keys import Keys
from service.settings import ENV_PREFIX, ServiceSettings
from tests.conftest import MakeIndex, random_gaussians
from tests.serving import Client, Served, wait_until


@pytest.fixture
def serve_command() -> Iterator[Callable[..., Result]]:
    """Runs `gaussearch serve` in this process, and leaves logging and torch's threads as they were."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = root.handlers[:], root.level

    def run(index: Path, *arguments: object) -> Result:
        command = ["serve", "--index", str(index), "--port", "0", *map(str, arguments)]
        return CliRunner().invoke(cli.app, command)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    torch.set_num_threads(threads)


def spoil(directory: IndexDirectory, name: str) -> Path:
    path = directory.segments / directory.manifest().segments[0].id / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


def message(result: Result) -> str:
    """The one line that is not a log line."""
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith("gaussearch: ")
    return line


def test_without_an_index(serve_command: Callable[..., Result], tmp_path: Path) -> None:
    result = serve_command(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in message(result)
    assert "gaussearch build" in message(result)
    assert len(result.stderr.splitlines()) == 1


def test_with_a_manifest_that_is_torn(serve_command: Callable[..., Result], make_index: MakeIndex) -> None:
    directory = make_index(random_gaussians(9, 2))
    (manifest,) = directory.manifests.glob("*.json")
    manifest.write_bytes(manifest.read_bytes()[:-9])
    assert str(manifest) in message(serve_command(directory.path))


@pytest.mark.parametrize("name", ["vectors.faiss", "gaussians.npy", "ids.arrow", "segment.json"])
def test_with_a_segment_that_is_damaged(serve_command: Callable[..., Result], make_index: MakeIndex, name: str) -> None:
    directory = make_index(random_gaussians(9, 2))
    damaged = spoil(directory, name)
    result = serve_command(directory.path)
    assert str(damaged) in message(result)
    assert result.stderr.count("CRITICAL") == 1


def test_with_an_error_that_nobody_foresaw(
    serve_command: Callable[..., Result], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(live_index, "load", fails)
    assert "CUDA out of memory" in message(serve_command(served.directory.path))


def test_with_too_little_memory(
    serve_command: Callable[..., Result], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.memory.available_memory", lambda: 1000)
    result = serve_command(served.directory.path)
    assert "GiB free" in message(result)
    assert len(result.stderr.splitlines()) == 1, "before anything is listened on or loaded"


def test_with_a_device_that_is_not_there(serve_command: Callable[..., Result], served: Served) -> None:
    assert "cuda:99" in message(serve_command(served.directory.path, "--device", "cuda:99"))


@pytest.mark.parametrize("workers", [1, 2])
def test_on_a_port_in_use(serve_command: Callable[..., Result], served: Served, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = serve_command(served.directory.path, "--port", port, "--workers", workers)
    assert f"127.0.0.1:{port} cannot be listened on" in message(result)


@pytest.mark.usefixtures("serve_command")
def test_a_worker_that_cannot_serve_ends_the_process_that_would_start_it_for_ever(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("no room")

    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(live_index, "load", fails)
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    monkeypatch.setenv(f"{ENV_PREFIX}INDEX", str(served.directory.path))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    client = Client(server.worker_app())
    try:
        wait_until(lambda: killed)
    finally:
        client.close()
    assert killed == [(os.getppid(), signal.SIGTERM)]
    assert "no room" in (tmp_path / server.FAILURE).read_text()


def test_what_a_worker_leaves_is_what_the_command_says(
    serve_command: Callable[..., Result], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uvicorn_run(*_: object, **__: object) -> None:
        Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], server.FAILURE).write_text("segments/x is torn")

    # Serving with workers puts every setting into the environment; the context takes them out again.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr("uvicorn.run", uvicorn_run)
    assert "segments/x is torn" in message(serve_command(served.directory.path, "--workers", 2))


def test_workers_find_every_setting_in_their_environment(
    serve_command: Callable[..., Result], served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = Path(__file__).parent / "tls"
    given = {
        "workers": 2,
        "api_key": "first,second",
        "api_key_file": tmp_path / "keys",
        "tls_certificate": files / "certificate.pem",
        "tls_key": files / "encrypted.pem",
        "tls_key_password": "sesame",
        "cors_origins": "https://a.example, https://b.example",
        "allow_anonymous": True,
        "header_seconds": 2.5,
    }
    (tmp_path / "keys").write_text("k" * 20)
    found: list[ServiceSettings] = []
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: found.append(ServiceSettings()))  # type: ignore[call-arg]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not True]
    result = serve_command(served.directory.path, "--allow-anonymous", *options)
    assert result.exit_code == 0, result.output
    assert found == [ServiceSettings.model_validate({"index": str(served.directory.path), "port": 0, **given})]
    assert found[0].tls_key_password is not None
    assert found[0].tls_key_password.get_secret_value() == "sesame"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {"INDEX": str(tmp_path), "PORT": "81", "VERIFY": "false", "RELOAD_SECONDS": "0.5", "API_KEY": "a, b"}
    for name, value in values.items():
        monkeypatch.setenv(f"{ENV_PREFIX}{name}", value)
    settings = ServiceSettings()  # type: ignore[call-arg]
    assert (settings.index, settings.port, settings.verify, settings.reload_seconds) == (str(tmp_path), 81, False, 0.5)
    assert Keys.load(settings) == Keys(search=(b"a", b"b"))
    assert ServiceSettings(index=tmp_path, port=82).port == 82


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("port", value) for value in (-1, 65536, "http")),
        *((name, 0) for name in ("workers", "threads", "reload_seconds", "max_batch_rows", "queue_rows", "timeout_ms")),
        *(
            (name, 0)
            for name in (
                "max_timeout_ms",
                "max_top_k",
                "max_candidates",
                "max_nprobe",
                "max_queries",
                "max_results",
                "max_body_bytes",
                "max_connections",
                "max_text_letters",
                "max_header_bytes",
                "header_seconds",
                "unread_seconds",
                "queue_bytes",
            )
        ),
        *((name, value) for name in ("header_seconds", "unread_seconds") for value in ("inf", "nan")),
        ("cors_origins", "everyone"),
        ("allow_anonymous", "perhaps"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("verify", "perhaps"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    serve_command: Callable[..., Result], served: Served, name: str, value: object
) -> None:
    with pytest.raises(ValidationError, match=name):
        ServiceSettings.model_validate({"index": served.directory.path, name: value})
    option = f"--{name.replace('_', '-')}"
    if name not in ("verify", "allow_anonymous"):
        result = serve_command(served.directory.path, f"{option}={value}")
        assert (result.exit_code, option in result.stderr) == (2, True)


def test_every_setting_is_described_and_frozen(tmp_path: Path) -> None:
    settings = ServiceSettings(index=tmp_path)
    assert all(field.description for field in ServiceSettings.model_fields.values())
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1
