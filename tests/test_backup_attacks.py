"""A tar is restored only where it is what a backup is: nothing else gets in, or out, and little is read of what claims
to be large."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from index import IndexDirectory
from index.backup import back_up
from index.durable import checksum
from index.errors import BackupError, CorruptIndexError, UnsupportedFormatError
from index.restoring import restore
from tests.conftest import MakeIndex, random_gaussians

Member = tuple[tarfile.TarInfo, bytes]
Members = list[Member]
Attack = Callable[[Members], None]


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    return info, data


def at(members: Members, ending: str) -> int:
    (place,) = [place for place, (info, _) in enumerate(members) if info.name.endswith(ending)]
    return place


def renamed(ending: str, name: str) -> Attack:
    def attack(members: Members) -> None:
        members[at(members, ending)][0].name = name

    return attack


def of_kind(ending: str, kind: bytes, link: str = "") -> Attack:
    def attack(members: Members) -> None:
        info, _ = members[at(members, ending)]
        members[at(members, ending)] = member(info.name, b"", kind, link)

    return attack


def inserted(place: int, *new: Member) -> Attack:
    def attack(members: Members) -> None:
        start = place if place >= 0 else len(members)
        members[start:start] = new

    return attack


def claiming(ending: str, size: int) -> Attack:
    def attack(members: Members) -> None:
        members[at(members, ending)][0].size = size

    return attack


def swapped(one: str, other: str) -> Attack:
    def attack(members: Members) -> None:
        i, j = at(members, one), at(members, other)
        members[i], members[j] = members[j], members[i]

    return attack


def left_out(ending: str) -> Attack:
    def attack(members: Members) -> None:
        del members[at(members, ending)]

    return attack


def changed(ending: str, old: bytes, new: bytes) -> Attack:
    def attack(members: Members) -> None:
        place = at(members, ending)
        info, data = members[place]
        assert old in data
        members[place] = member(info.name, data.replace(old, new, 1))

    return attack


def forged(change: Callable[[dict[str, Any]], object]) -> Attack:
    """A manifest that says something else, under checksums that are right."""

    def attack(members: Members) -> None:
        info, data = members[1]
        manifest = json.loads(data)
        change(manifest)
        data = json.dumps(manifest).encode()
        token = f"{info.name.removeprefix('manifests/')} {checksum(data)}\n".encode()
        members[:3] = [member("CURRENT", token), member(info.name, data), member(members[2][0].name, token)]

    return attack


ATTACKS: dict[str, tuple[Attack, str]] = {
    "an absolute path": (renamed("ids.arrow", "/evil"), "'/evil'"),
    "a path that leaves the folder": (renamed("ids.arrow", "../../evil"), r"'\.\./\.\./evil'"),
    "an unknown name": (inserted(3, member("segments/evil.py", b"print()")), r"'segments/evil\.py'"),
    "a name after the last": (inserted(-1, member("evil", b"x")), "'evil', which is no file of its generation"),
    "the same file twice": (inserted(-1, member("CURRENT", b"x")), "'CURRENT', which is no file of its generation"),
    "a folder": (inserted(0, member("segments", b"", tarfile.DIRTYPE)), "'segments'"),
    "a symbolic link": (of_kind("ids.arrow", tarfile.SYMTYPE, "/etc/passwd"), r"ids\.arrow' \(type b'2'\)"),
    "a hard link": (of_kind("ids.arrow", tarfile.LNKTYPE, "CURRENT"), r"ids\.arrow' \(type b'1'\)"),
    "a device": (of_kind("ids.arrow", tarfile.CHRTYPE), r"ids\.arrow' \(type b'3'\)"),
    "a FIFO": (of_kind("ids.arrow", tarfile.FIFOTYPE), r"ids\.arrow' \(type b'6'\)"),
    "a sparse file": (of_kind("ids.arrow", tarfile.GNUTYPE_SPARSE), r"ids\.arrow' \(type b'S'\)"),
    "attributes of any length": (inserted(0, member("x", b"9" * 9999, tarfile.XHDTYPE)), r"\(type b'x'\)"),
    "a name of any length": (
        inserted(0, member("x", b"9" * 9999, tarfile.GNUTYPE_LONGNAME)),
        r"\(type b'L'\)",
    ),
    "another order": (swapped("ids.arrow", "gaussians.npy"), r"ids\.arrow.* where a backup has .*gaussians\.npy"),
    "a file left out": (left_out("ids.arrow"), r"where a backup has segments/.*ids\.arrow"),
    "a huge CURRENT": (
        claiming("CURRENT", 1 << 50),
        r"CURRENT has \d+ bytes, where no more than 200 can be",
    ),
    "a huge manifest": (claiming("00000001.json", 1 << 60), r"00000001\.json has \d+ bytes, where no more than"),
    "a huge segment.json": (claiming("segment.json", 1 << 60), r"segment\.json has \d+ bytes, where no more than"),
    "a huge file": (claiming("gaussians.npy", 1 << 60), r"gaussians\.npy has 1152921504606846976 bytes, not \d+"),
    "a file of fewer bytes": (claiming("gaussians.npy", 3), r"gaussians\.npy has 3 bytes, not \d+"),
    "a CURRENT that names nothing": (changed("CURRENT", b".json", b".jsom"), "CURRENT does not name a manifest"),
    "a CURRENT that leads elsewhere": (
        changed("CURRENT", b"00000001", b"../../ab"),
        "CURRENT does not name a manifest",
    ),
    "another manifest": (changed("00000001.json", b"flat", b"falt"), r"00000001\.json does not match the checksum in"),
    "another record": (changed(".blake3", b"\n", b" "), r"00000001\.blake3 does not say what .*CURRENT says"),
    "another segment.json": (changed("segment.json", b"20", b"21"), r"segment\.json does not match its checksum"),
    "another file": (changed("gaussians.npy", b"NUMPY", b"numpy"), r"gaussians\.npy does not match its checksum"),
    "a segment elsewhere": (forged(lambda it: it["segments"][0].update(id="../../evil")), r"segments\.0\.id"),
    "a segment of later times": (
        forged(lambda it: it["segments"][0].update(id="0" * 12 + "-00000002-00000")),
        "is of generation 1, but has files of generation 2",
    ),
    "a manifest of another number": (forged(lambda it: it.update(generation=7)), "is of generation 7"),
    "a manifest of another release": (forged(lambda it: it.update(format_version=99)), "format version 99"),
    "a manifest of another size": (
        forged(lambda it: it["segments"][0].update(bytes=it["segments"][0]["bytes"] + 1)),
        r"bad\.tar.*segment\.json describes another segment",
    ),
    "a codebook elsewhere": (forged(lambda it: it.update(codes={"codebook": "../evil"})), r"codes\.codebook"),
}


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_tar(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def write_tar(path: Path, members: Members) -> None:
    tar = io.BytesIO()
    for info, data in members:
        tar.write(info.tobuf(tarfile.GNU_FORMAT))
        tar.write(data + bytes(-len(data) % 512))
    tar.write(bytes(1024))
    packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
    path.write_bytes(packers.get(path.suffix, bytes)(tar.getvalue()))


@pytest.fixture
def small_tar(tmp_path: Path, make_index: MakeIndex) -> Path:
    """A backup of 20 documents in one segment, generation 1."""
    back_up(make_index(random_gaussians(20, 3)), tmp_path / "small.tar")
    return tmp_path / "small.tar"


@pytest.mark.parametrize("what", list(ATTACKS))
@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.zst"])
def test_a_tar_that_means_harm_does_none(small_tar: Path, tmp_path: Path, what: str, ending: str) -> None:
    attack, said = ATTACKS[what]
    members = read_tar(small_tar)
    attack(members)
    bad = tmp_path / f"bad{ending}"
    write_tar(bad, members)
    inside = IndexDirectory(tmp_path / "inside" / "restored")
    with pytest.raises((BackupError, CorruptIndexError, UnsupportedFormatError), match=said) as caught:
        restore(bad, inside)
    assert str(bad) in str(caught.value) or str(inside.path) in str(caught.value)
    # Nothing is left of it, inside and outside of the directory.
    assert {path.name for path in (tmp_path / "inside").rglob("*") if path.is_file()} <= {".lock"}
    assert not list(tmp_path.rglob("*evil*"))
    live = IndexDirectory(tmp_path / "index")
    before = content(live.path)
    with pytest.raises((BackupError, CorruptIndexError, UnsupportedFormatError)):
        restore(bad, live)
    assert content(live.path) == before


def test_a_tar_of_the_same_members_is_restored(small_tar: Path, tmp_path: Path) -> None:
    """What the attacks change is what they are refused for."""
    for ending in (".tar", ".tar.gz", ".tar.zst"):
        write_tar(tmp_path / f"same{ending}", read_tar(small_tar))
        restored = IndexDirectory(tmp_path / f"restored{ending}")
        restore(tmp_path / f"same{ending}", restored)
        assert restored.verify().documents == 20


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.zst"])
def test_a_tar_that_is_cut_short_is_refused(small_tar: Path, tmp_path: Path, ending: str) -> None:
    write_tar(tmp_path / f"whole{ending}", read_tar(small_tar))
    whole = (tmp_path / f"whole{ending}").read_bytes()
    restored = IndexDirectory(tmp_path / "restored")
    cut = tmp_path / f"cut{ending}"
    # Compressed, the last bytes are checksums, which nothing needs: the files have their own.
    needed = len(whole) - 1024 - 512 if ending == ".tar" else len(whole) - 80
    for size in range(0, needed, max(1, len(whole) // 40)):
        cut.write_bytes(whole[:size])
        with pytest.raises((CorruptIndexError, BackupError), match="cut"):
            restore(cut, restored)
        assert restored.live_generation() is None


def test_numbers_of_generations_are_not_used_up(small_tar: Path, tmp_path: Path) -> None:
    members = read_tar(small_tar)
    data = members[1][1]
    manifest = json.loads(data)
    manifest["generation"] = 99_999_999
    data = json.dumps(manifest).encode()
    token = f"99999999.json {checksum(data)}\n".encode()
    members[:3] = [
        member("CURRENT", token),
        member("manifests/99999999.json", data),
        member("manifests/99999999.blake3", token),
    ]
    write_tar(tmp_path / "last.tar", members)
    for name in ("new", "index"):
        with pytest.raises(BackupError, match="beyond 99,000,000"):
            restore(tmp_path / "last.tar", IndexDirectory(tmp_path / name))


def test_a_name_that_is_no_unicode_is_shown(small_tar: Path, tmp_path: Path) -> None:
    members = read_tar(small_tar)
    write_tar(tmp_path / "odd.tar", [member("\udcff" * 90, b"x"), *members])
    with pytest.raises(BackupError, match="where a backup has CURRENT") as caught:
        restore(tmp_path / "odd.tar", IndexDirectory(tmp_path / "restored"))
    str(caught.value).encode()
