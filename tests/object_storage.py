"""A real S3 server on loopback, moto's, behind a proxy that can be told what goes wrong on the way there.

The proxy lets one conditional put through at a time: storage decides these one after the other, and moto, whose
requests have a thread each, looks first and writes then.
"""

import contextlib
import http.client
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest
from moto.server import ThreadedMotoServer

from index import IndexDirectory
from index.remote.cache import CacheOptions
from index.remote.client import Patience
from index.remote.remote_index import RemoteIndex

BUCKET = "bucket"
SIGNED = "AWS4-HMAC-SHA256 Credential=key/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""moto looks whether there is one."""
CHANGES = ("PUT", "POST", "DELETE")
QUICK = Patience(connect=5.0, read=20.0, retries=3, retry_seconds=20.0, first_wait=0.01)
"""Nothing is waited for that need not be."""
IMPATIENT = Patience(connect=1.0, read=0.5, upload=0.5, retries=1, retry_seconds=5.0, first_wait=0.01)
"""For servers that do not answer at all."""

ERROR = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
SAID = {
    "ExpiredToken": (403, "The provided token has expired."),
    "InvalidAccessKeyId": (403, "The AWS Access Key Id you provided does not exist in our records."),
    "AccessDenied": (403, "Access Denied"),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "SlowDown": (503, "Please reduce your request rate."),
}


@dataclass
class Fault:
    """What happens to the requests of a method to objects whose name has this in it, so many times.

    `refuse` is a code of S3; the others say what becomes of the way: `truncate` ends the body of the answer halfway,
    `cut` ends the connection before the request has come through and `lose` after it, `trickle` has the answer come
    in many pieces, `flip` changes a bit of it, `hang` holds the request until `release`; `reached` says that one came.
    """

    what: str
    method: str = "GET"
    name: str = ""
    times: int = 1
    after: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def strikes(self, method: str, name: str) -> bool:
        """Whether it is this request that it happens to. Hold the storage's lock."""
        if method not in self.method.split("|") or not re.search(self.name, name) or not self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class FaultyStorage:
    """The server and the proxy; `requests` are (method, name of the object) of all that have come, in their order."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.under_way = 0
        self.faults: list[Fault] = []
        self.lock, self.conditional = threading.Lock(), threading.Lock()
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto.start()
        self.upstream = self._moto.get_host_and_port()
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("OfOne", (Handler,), {"storage": self}))
        proxy.daemon_threads, proxy.block_on_close = True, False
        self.endpoint = f"http://127.0.0.1:{proxy.server_port}"
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            self._ask("PUT", f"/{BUCKET}")
            yield
        finally:
            self.heal()
            proxy.shutdown()
            thread.join()
            proxy.server_close()
            self._moto.stop()

    def fail(self, what: str, **how: Any) -> Fault:
        """Has requests struck from now on."""
        fault = Fault(what, **how)
        with self.lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Ends all faults, and lets go what hangs."""
        with self.lock:
            for fault in self.faults:
                fault.times = 0
                fault.release.set()
            self.faults.clear()

    def asked(self, method: str, name: str) -> int:
        """How many requests of this method have come for objects whose name has this in it."""
        with self.lock:
            return sum(each == method and re.search(name, other) is not None for each, other in self.requests)

    def objects(self, prefix: str) -> dict[str, bytes]:
        """All objects below a prefix, looked at behind the proxy."""
        listed = self._ask("GET", f"/{BUCKET}?list-type=2&prefix={prefix}/").decode()
        names = [unquote(name) for name in re.findall(r"<Key>([^<]+)</Key>", listed)]
        return {name.removeprefix(f"{prefix}/"): self._ask("GET", f"/{BUCKET}/{name}") for name in names}

    def put(self, name: str, data: bytes) -> None:
        """Puts an object behind the proxy."""
        self._ask("PUT", f"/{BUCKET}/{name}", data)

    def delete(self, name: str) -> None:
        """Removes an object behind the proxy."""
        self._ask("DELETE", f"/{BUCKET}/{name}")

    def environment(self) -> dict[str, str]:
        """What the environment of a client must have."""
        return {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(*self.upstream)
        connection.request(method, path, body, {"Authorization": SIGNED})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status < 300, (method, path, answer.status, data)
        return data


class Handler(BaseHTTPRequestHandler):
    """What answers the requests of a connection."""

    storage: ClassVar[FaultyStorage]
    protocol_version = "HTTP/1.1"
    # A head and a body are written one after the other: the second would wait for an acknowledgement of the first.
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        with self.storage.lock:
            self.storage.under_way += 1
        try:
            self._serve()
        finally:
            with self.storage.lock:
                self.storage.under_way -= 1

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = unquote(self.path.partition("?")[0].removeprefix(f"/{BUCKET}").lstrip("/"))
        with self.storage.lock:
            self.storage.requests.append((self.command, name))
            fault = next((each for each in self.storage.faults if each.strikes(self.command, name)), None)
        if fault is not None:
            fault.reached.set()
        if fault is None or fault.what in ("truncate", "trickle", "flip", "lose"):
            self._answer(*self._forwarded(body), how=fault.what if fault is not None else "")
        elif fault.what == "hang":
            fault.release.wait()
            self._answer(*self._forwarded(body))
        elif fault.what == "drop":
            fault.release.wait()
            self._end()
        elif fault.what == "cut":
            self._end()
        else:
            status, message = SAID[fault.what]
            self._answer(status, {}, ERROR.format(code=fault.what, message=message).encode())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _forwarded(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with contextlib.ExitStack() as stack:
            if "If-Match" in self.headers or "If-None-Match" in self.headers:
                stack.enter_context(self.storage.conditional)
            connection = http.client.HTTPConnection(*self.storage.upstream)
            stack.callback(connection.close)
            kept = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
            connection.request(self.command, self.path, body, kept)
            answer = connection.getresponse()
            hop = ("connection", "transfer-encoding", "server", "date")
            headers = {key: value for key, value in answer.getheaders() if key.lower() not in hop}
            return answer.status, headers, answer.read()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, how: str = "") -> None:
        if how == "lose":
            self._end()
            return
        if how == "flip" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(status)
        for key, value in headers.items():
            if key.lower() != "content-length":
                self.send_header(key, value)
        length = headers.get("Content-Length", headers.get("content-length", str(len(body))))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        step = max(1, len(body) // 50) if how == "trickle" else max(1, len(body))
        sent = body[: len(body) // 2] if how == "truncate" else body
        with contextlib.suppress(OSError):
            for start in range(0, 0 if self.command == "HEAD" else len(sent), step):
                self.wfile.write(sent[start : start + step])
                self.wfile.flush()
        if how == "truncate":
            self._end()

    def _end(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(2)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Storage:
    """What tests of indexes in storage are given: places for indexes, and caches, which stand for machines."""

    faulty: FaultyStorage
    folder: Path
    prefix: str

    @property
    def uri(self) -> str:
        """Where the test's index lies."""
        return f"s3://{BUCKET}/{self.prefix}"

    def on(self, machine: str, **options: Any) -> RemoteIndex:
        """The index, as a machine sees it."""
        index = IndexDirectory.of(self.uri, CacheOptions(self.folder / machine, **options))
        assert isinstance(index, RemoteIndex)
        return index

    def fail(self, what: str, **how: Any) -> Fault:
        """As FaultyStorage."""
        return self.faulty.fail(what, **how)

    def asked(self, method: str, name: str) -> int:
        """As FaultyStorage, of the index's own objects: another may have such of the same names."""
        return self.faulty.asked(method, f"{re.escape(self.prefix)}/.*{name}")

    def objects(self) -> dict[str, bytes]:
        """All that the index has in storage."""
        return self.faulty.objects(self.prefix)


@contextlib.contextmanager
def storage_for(faulty: FaultyStorage, folder: Path, prefix: str) -> Iterator[Storage]:
    """Storage as the environment of this process names it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in faulty.environment().items():
            patch.setenv(name, value)
        patch.setenv("GAUSSEARCH_CACHE", str(folder / "cache"))
        patch.setattr("index.remote.client.PATIENCE", QUICK)
        yield Storage(faulty, folder, prefix)
    faulty.heal()
