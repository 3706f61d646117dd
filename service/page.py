"""The page at /: files of service/static, as they are, which ask the service as any other client does.

Nothing in them is secret, and no key is needed to read them; what they ask /v1 for takes one where everything does.
What they show comes from documents, which anyone may have written, so that their headers let the browser run and load
what lies here and nothing else.

All files but the page itself are served below a name that is made of their contents: a browser keeps them for good, and
a new release has new names.
"""

import functools
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from index.durable import checksum
from service.middleware import HEADERS
from service.problems import NotFoundError

__all__ = ["FOLDER", "POLICY", "page_routes"]

FOLDER = Path(__file__).with_name("static")

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text becomes markup, whatever a script does with it.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""What the page may load, run and be shown in: its own files, and no inline script or style."""

_COMMON = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_OF_PAGE = (
    *_COMMON,
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", POLICY.encode()),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"x-frame-options", b"DENY"),
)
_OF_FILES = (*_COMMON, (b"cache-control", b"public, max-age=31536000, immutable"))

PLACE = b"{files}"
"""Stands in the page for the folder of its files."""

_TYPES = {".js": "text/javascript", ".woff2": "font/woff2"}
"""What mimetypes takes from the system, which may know other names."""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, name: str) -> "_File":
        media_type = _TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "text/plain"
        return cls(content, media_type, f'"{checksum(content)[:32]}"')


def page_routes() -> list[Route]:
    """The routes of the page and of its files, which are read once."""
    page, files = _read()

    async def show(request: Request) -> Response:
        return _answer(request, page, _OF_PAGE)

    async def fetch(request: Request) -> Response:
        path = request.path_params["path"]
        if path not in files:
            raise NotFoundError(f"{request.url.path} is not served; reload the page, which names the files of today")
        return _answer(request, files[path], _OF_FILES)

    return [
        Route("/", show, include_in_schema=False),
        Route("/page/{path:path}", fetch, include_in_schema=False),
    ]


def _answer(request: Request, file: _File, headers: tuple[tuple[bytes, bytes], ...]) -> Response:
    request.scope[HEADERS] = headers
    tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    known = file.etag in tags or "*" in tags
    if known:
        return Response(None, 304, {"etag": file.etag})
    return Response(file.content, 200, {"etag": file.etag}, file.media_type)


@functools.cache
def _read() -> tuple[_File, dict[str, _File]]:
    """The page, and its files by the path that it names them by."""
    contents = {
        path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in sorted(FOLDER.rglob("*")) if path.is_file()
    }
    version = checksum(b"".join(name.encode() + b"\0" + checksum(its).encode() for name, its in contents.items()))[:16]
    page = contents.pop("index.html").replace(PLACE, f"page/{version}".encode())
    return _File.of(page, "index.html"), {f"{version}/{name}": _File.of(its, name) for name, its in contents.items()}
