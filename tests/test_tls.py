"""HTTPS: what a client sees of it, and files that are refused before anything is listened on."""

import contextlib
import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from service import cli
from service.app import create_app
from service.settings import ServiceSettings
from service.tls import TlsError, client_context, context_factory, server_context
from tests.conftest import random_gaussians, write_corpus
from tests.serving import PATIENCE, Served

FILES = Path(__file__).parent / "tls"
CERTIFICATE, KEY, ENCRYPTED, OTHER = (FILES / f"{name}.pem" for name in ("certificate", "key", "encrypted", "other"))
PASSWORD = "sesame"  # noqa: S105


@pytest.fixture
def https(served: Served, listen: Callable[..., int]) -> str:
    """The small index over HTTPS."""
    settings = ServiceSettings(index=served.directory.path, tls_certificate=CERTIFICATE, tls_key=KEY)
    return f"https://127.0.0.1:{listen(create_app(settings))}"


@pytest.fixture
def trusting() -> Iterator[httpx.Client]:
    """A client that trusts the test's certificate."""
    with httpx.Client(verify=client_context(CERTIFICATE), trust_env=False, timeout=PATIENCE) as client:
        yield client


def test_a_client_that_trusts_the_certificate_is_answered(https: str, trusting: httpx.Client) -> None:
    assert trusting.get(f"{https}/v1/index").json()["documents"] == 60
    by_name = https.replace("127.0.0.1", "localhost")
    assert trusting.get(f"{by_name}/livez").status_code == 200


def test_a_client_that_does_not_is_not(https: str) -> None:
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get(f"{https}/livez")
        with pytest.raises(httpx.TransportError):
            client.get(f"{https.replace('https', 'http')}/livez")


def handshake(url: str, context: ssl.SSLContext) -> str | None:
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    with (
        socket.create_connection(address, timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return connection.version()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_newer_are_spoken(https: str, version: ssl.TLSVersion) -> None:
    context = client_context(CERTIFICATE)
    context.minimum_version = context.maximum_version = version
    assert handshake(https, context) == version.name.replace("_", ".")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_anything_older_is_not(https: str, version: ssl.TLSVersion) -> None:
    context = client_context(CERTIFICATE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    # Or the client's own OpenSSL would not offer it.
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(https, context)


def test_a_connection_is_bounded_as_without_tls(served: Served, listen: Callable[..., int]) -> None:
    settings = ServiceSettings(
        index=served.directory.path, tls_certificate=CERTIFICATE, tls_key=KEY, header_seconds=0.1, unread_seconds=0.1
    )
    address = ("127.0.0.1", listen(create_app(settings)))
    for begun in (b"", b"GET /livez HTTP/1.1\r\n"):
        with (
            socket.create_connection(address, timeout=PATIENCE) as plain,
            client_context(CERTIFICATE).wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(begun)
            answer = b""
            # One that is dropped ends without the words that end TLS.
            with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
                while part := connection.recv(1 << 16):
                    answer += part
            assert answer.startswith(b"HTTP/1.1 408 ") if begun else answer == b""


def test_a_system_that_allows_less_does_not_decide() -> None:
    context = server_context(CERTIFICATE, KEY)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_an_encrypted_key_takes_its_password() -> None:
    server_context(CERTIFICATE, ENCRYPTED, SecretStr(PASSWORD))
    for password in (None, SecretStr("open"), SecretStr(""), SecretStr("x" * 5000)):
        with pytest.raises(TlsError, match=f"{ENCRYPTED} is not a private key in PEM, or tls_key_password") as refused:
            server_context(CERTIFICATE, ENCRYPTED, password)
        assert "open" not in str(refused.value)


def test_the_password_does_not_show() -> None:
    settings = ServiceSettings(
        index=Path("nowhere"),
        tls_certificate=CERTIFICATE,
        tls_key=ENCRYPTED,
        tls_key_password=PASSWORD,  # type: ignore[arg-type]
    )
    assert PASSWORD not in f"{settings!r} {context_factory(settings)!r}"


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (CERTIFICATE, OTHER, f"--tls-key: {OTHER} is not the private key of {CERTIFICATE}"),
        (CERTIFICATE, CERTIFICATE, f"--tls-key: {CERTIFICATE} is not a private key in PEM"),
        (CERTIFICATE, "junk", "junk is not a private key in PEM"),
        (CERTIFICATE, "empty", "empty is not a private key in PEM"),
        (KEY, KEY, f"--tls-certificate: {KEY} holds no certificate in PEM"),
        ("junk", KEY, "junk holds no certificate in PEM"),
        ("empty", KEY, "empty holds no certificate in PEM"),
        ("missing", KEY, "missing does not exist"),
        (CERTIFICATE, "missing", "missing does not exist"),
        (CERTIFICATE, ".", "cannot be read: Is a directory"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_files_that_cannot_be_used_are_named_before_anything_is_listened_on(
    served: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    certificate: Path | str,
    key: Path | str,
    message: str,
    workers: int,
) -> None:
    (tmp_path / "junk").write_bytes(b"\xff\x00junk\n")
    (tmp_path / "empty").touch()
    monkeypatch.setattr("service.server._require_free", lambda *_: pytest.fail("it would have listened"))
    options = {
        "--index": served.directory.path,
        "--tls-certificate": tmp_path / certificate,
        "--tls-key": tmp_path / key,
        "--workers": workers,
    }
    result = CliRunner().invoke(cli.app, ["serve", *(str(part) for pair in options.items() for part in pair)])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(("gaussearch: --tls-certificate: ", "gaussearch: --tls-key: "))
    assert line.endswith(" [bad_tls_file]")
    assert message in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tls_certificate": CERTIFICATE}, "belong together"),
        ({"tls_key": KEY}, "belong together"),
        ({"tls_key_password": PASSWORD}, "tls_key_password is that of tls_key"),
    ],
)
def test_half_of_what_tls_takes_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServiceSettings(index=Path("nowhere"), **settings)


def test_without_a_certificate_there_is_no_tls() -> None:
    assert context_factory(ServiceSettings(index=Path("nowhere"))) is None


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Any]:
    """`gaussearch search --url`, with a query."""
    queries = write_corpus(tmp_path / "queries.parquet", random_gaussians(1, 5), ["q1"])

    def run(url: str, *arguments: object) -> Any:
        command = ["search", "--url", url, "--queries", str(queries), "--format", "trec", *map(str, arguments)]
        return CliRunner().invoke(cli.app, command)

    return run


def test_the_command_searches_over_https(https: str, search: Callable[..., Any]) -> None:
    found = search(https, "--ca", CERTIFICATE)
    assert found.exit_code == 0, found.stderr
    assert len(found.stdout.splitlines()) == 10
    refused = search(https)
    assert refused.exit_code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr


def test_an_authority_that_cannot_be_used_is_named(https: str, search: Callable[..., Any], tmp_path: Path) -> None:
    for path, message in ((KEY, f"{KEY} holds no certificate in PEM"), (tmp_path / "nothing", "nothing")):
        refused = search(https, "--ca", path)
        assert (refused.exit_code, message in refused.stderr) == (1, True)
