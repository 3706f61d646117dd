"""Without a search key the service listens where only its own machine reaches it, unless it is told otherwise."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service import cli, server
from service.exposure import ExposedError, is_loopback, require_key_or_loopback
from service.keys import Keys
from service.settings import ServiceSettings
from tests.serving import Served

KEY = "k" * 20
EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "localhost"])
def test_loopback_is_recognised(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", [EVERYWHERE, "::", "", "10.1.2.3", "192.0.2.1", "::ffff:192.0.2.1", "fe80::1", "fe80::1%lo", "2001:db8::1"]
)
def test_anything_else_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [(["127.0.0.1"], True), (["::1", "127.0.0.1"], True), (["127.0.0.1", "192.0.2.1"], False), ([EVERYWHERE], False)],
)
def test_a_name_is_what_it_leads_to(monkeypatch: pytest.MonkeyPatch, addresses: list[str], expected: bool) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert is_loopback("search.example") is expected


def test_a_name_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(OSError, match=r"nowhere\.example cannot be listened on: Name or service not known"):
        is_loopback("nowhere.example")


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "192.0.2.1"])
def test_other_machines_are_served_with_a_search_key_or_where_it_is_said(host: str) -> None:
    def check(keys: Keys, **settings: Any) -> None:
        require_key_or_loopback(ServiceSettings(index=Path("nowhere"), **settings), keys)

    check(Keys(), host="127.0.0.1")
    check(Keys(search=(b"key",)), host=host)
    check(Keys(), host=host, allow_anonymous=True)
    for keys in (Keys(), Keys(admin=(b"key",))):
        with pytest.raises(ExposedError, match=r"GAUSSEARCH_API_KEY.*GAUSSEARCH_ALLOW_ANONYMOUS=true"):
            check(keys, host=host)


@pytest.fixture
def listened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where `gaussearch serve` would listen; it never does."""
    hosts: list[str] = []
    monkeypatch.setattr(server, "_require_free", lambda host, _: hosts.append(host))
    monkeypatch.setattr(server, "_prepare_process", lambda _: None)
    monkeypatch.setattr(server, "_run_here", lambda *_: None)
    monkeypatch.setattr(server, "_run_workers", lambda *_: None)
    return hosts


@pytest.fixture
def serve_on(served: Served, listened: list[str]) -> Callable[..., tuple[int, str]]:
    """`gaussearch serve --host HOST`: its status and what it says."""

    def run(host: str, *arguments: object, **environment: str) -> tuple[int, str]:
        command = ["serve", "--index", str(served.directory.path), "--host", host, *map(str, arguments)]
        result = CliRunner().invoke(cli.app, command, env=environment)
        assert listened == ([host] if result.exit_code == 0 else [])
        listened.clear()
        return result.exit_code, result.stderr

    return run


def test_an_open_service_is_refused_before_it_listens(serve_on: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    for arguments in ((), ("--workers", 2), ("--admin-key", KEY)):
        status, said = serve_on(EVERYWHERE, *arguments)
        assert status == 1
        assert said.startswith("gaussearch: other machines may reach 0.0.0.0, and there is no search key.")
        assert "--api-key-file" in said
        assert "--allow-anonymous" in said
        assert len(said.splitlines()) == 1
    (tmp_path / "keys").write_text(KEY)
    assert serve_on(EVERYWHERE, "--api-key-file", tmp_path / "keys") == (0, "")
    assert serve_on(EVERYWHERE, "--api-key", KEY) == (0, "")
    assert serve_on(EVERYWHERE, "--allow-anonymous") == (0, "")
    assert serve_on(EVERYWHERE, GAUSSEARCH_ALLOW_ANONYMOUS="true") == (0, "")
    assert serve_on(EVERYWHERE, GAUSSEARCH_ALLOW_ANONYMOUS="false")[0] == 1
    assert serve_on("127.0.0.1") == (0, "")
    assert serve_on("localhost") == (0, "")


def test_keys_that_cannot_be_are_refused_before_it_listens(
    serve_on: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, said = serve_on("127.0.0.1", "--api-key-file", tmp_path / "nothing")
    assert (status, said) == (1, f"gaussearch: --api-key-file: {tmp_path / 'nothing'} does not exist [bad_keys]\n")
    status, said = serve_on("127.0.0.1", "--admin-key", "short")
    assert (status, "[bad_keys]" in said, "short " in said) == (1, True, False)
    status, said = serve_on("127.0.0.1", "--admin-key", KEY, "--workers", 2)
    assert (status, "takes one process" in " ".join(said.split()), KEY in said) == (2, True, False)


@pytest.mark.parametrize("host", ["my..host", f"{'a' * 64}.example", ".example"])
def test_a_name_that_could_be_none_is_named(host: str) -> None:
    with pytest.raises(OSError, match="cannot be listened on"):
        is_loopback(host)
