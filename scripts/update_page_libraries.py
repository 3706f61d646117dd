"""Takes the libraries of the page from npm: what the page needs of them, their licences, and a record of both.

    python scripts/update_page_libraries.py            downloads them and writes service/static/libraries
    python scripts/update_page_libraries.py --check    changes nothing, and exits with 1 where a file is not as recorded

Versions are pinned here, with the digest that npm publishes of each: an archive that differs is refused. To take
another version, change both (`npm view NAME@VERSION dist.integrity`). It needs `npm`; who serves the page does not.
"""

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARIES = Path(__file__).resolve().parent.parent / "service" / "static" / "libraries"
RECORD = LIBRARIES / "libraries.json"
SCALES = ("slate", "indigo", "orange", "teal", "amber", "plum", "green", "red")


@dataclass(frozen=True, slots=True)
class Library:
    """A package of npm. `files` are what is written, each of these members of the package, one after the other."""

    name: str
    version: str
    integrity: str
    licence: str
    folder: str
    files: dict[str, list[str]]


PINNED = [
    Library(
        "uplot",
        "1.6.32",
        "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
        "MIT",
        "uplot",
        {
            "uPlot.js": ["dist/uPlot.iife.min.js"],
            "uPlot.css": ["dist/uPlot.min.css"],
            "LICENSE": ["LICENSE"],
        },
    ),
    Library(
        "@radix-ui/colors",
        "3.0.0",
        "sha512-FUOsGBkHrYJwCSEtWRCIfQbZG7q1e6DgxCIOe1SUQzDe/7rXXeA47s8yCn6fuTNQAj1Zq4oTFi9Yjp3wzElcxg==",
        "MIT",
        "radix-colors",
        {
            "colors.css": [f"{scale}{form}.css" for scale in SCALES for form in ("", "-dark")],
            "LICENSE": ["LICENSE"],
        },
    ),
    Library(
        "@fontsource-variable/inter",
        "5.3.0",
        "sha512-OupL48va4JNofb97w6NYeF9S7W/kHNKM0Er8Dem5nqi4jeOLrVJDoE8tZEpnMJmtkvNbB1EIPPwHcdkF6b1oUA==",
        "OFL-1.1",
        "inter",
        {
            "inter.woff2": ["files/inter-latin-wght-normal.woff2"],
            "LICENSE": ["LICENSE"],
        },
    ),
]


def download(library: Library, folder: Path) -> Path:
    """The archive of a package, checked; ValueError where it is not what is pinned."""
    wanted = f"{library.name}@{library.version}"
    command = ["npm", "pack", "--silent", "--json", "--pack-destination", str(folder), wanted]
    (packed,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    archive: Path = folder / packed["filename"].replace("@", "").replace("/", "-")
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != library.integrity:
        raise ValueError(f"{wanted} is {found}, not {library.integrity}")
    return archive


def take(library: Library, archive: Path) -> dict[str, str]:
    """Writes the files of a package; the SHA-256 of each by its path."""
    folder = LIBRARIES / library.folder
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    with tarfile.open(archive) as packed:
        declared = json.loads(member(packed, "package.json"))
        if declared["license"] != library.licence:
            raise ValueError(f"{library.name} is under {declared['license']}, not {library.licence}")
        for name, members in library.files.items():
            content = b"\n".join(member(packed, each) for each in members)
            (folder / name).write_bytes(content)
            digests[f"{library.folder}/{name}"] = hashlib.sha256(content).hexdigest()
    return digests


def member(packed: tarfile.TarFile, name: str) -> bytes:
    """A file of an npm package."""
    file = packed.extractfile(f"package/{name}")
    if file is None:
        raise ValueError(f"{name} is no file")
    return file.read()


def update() -> None:
    record = []
    with tempfile.TemporaryDirectory() as folder:
        for library in PINNED:
            digests = take(library, download(library, Path(folder)))
            record.append(
                {
                    "name": library.name,
                    "version": library.version,
                    "licence": library.licence,
                    "integrity": library.integrity,
                    "files": digests,
                }
            )
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def differences() -> list[str]:
    """What is not as it was taken: files that differ, are missing or nobody's, and versions that are not recorded."""
    record: list[dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))
    pinned = [(library.name, library.version, library.licence, library.integrity) for library in PINNED]
    recorded = [(each["name"], each["version"], each["licence"], each["integrity"]) for each in record]
    wrong = [] if pinned == recorded else ["libraries.json does not record what is pinned"]
    digests = {path: digest for each in record for path, digest in each["files"].items()}
    there = {path.relative_to(LIBRARIES).as_posix(): path for path in LIBRARIES.rglob("*") if path.is_file()}
    there.pop(RECORD.name)
    for path in sorted({*digests, *there}):
        if path not in there or path not in digests:
            wrong.append(f"{path} is {'missing' if path in digests else 'not recorded'}")
        elif hashlib.sha256(there[path].read_bytes()).hexdigest() != digests[path]:
            wrong.append(f"{path} is not as it was taken")
    return wrong


def main() -> int:
    if "--check" not in sys.argv[1:]:
        update()
    wrong = differences()
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
