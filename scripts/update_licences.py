"""Write docs/licences.md: every package that gaussearch[cpu,evaluate] runs with, the version tested, and its licence;
and the libraries of the page, as scripts/update_page_libraries.py has recorded them.

    python scripts/update_licences.py            writes the file
    python scripts/update_licences.py --check    changes nothing, and exits with 1 where the file is out of date

Which packages these are follows from pyproject.toml and from what each of them requires; versions are those of
constraints.txt, and licences are what the installed packages say of themselves, so it runs where these are installed.
"""

import json
import sys
import tomllib
from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LICENCES = ROOT / "docs" / "licences.md"
LIBRARIES = ROOT / "service" / "static" / "libraries"
EXTRAS = ("cpu", "evaluate")

# What constraints.txt is for, whatever this runs on.
TESTED_ON = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
}

LONGEST = 80
"""Characters of a License field that names a licence; a longer one holds its text."""

HEADER = """\
# Licences

What Gaussearch runs with: every package that `gaussearch[cpu,evaluate]` requires, directly or through another, at the
version of [constraints.txt](../constraints.txt), and the licence that it declares. `python scripts/update_licences.py`
writes this table out of the installed packages. torch's CUDA builds and faiss-gpu bring NVIDIA's libraries under
licences of their own. The sample is WordNet's ([licence](../sample/wordnet/LICENSE)).

| package | version | licence |
|---|---|---|
"""


PAGE = """
## The page

What the page at `/` is made with beside its own files: taken from npm as published, or joined, by
`python scripts/update_page_libraries.py`, and served as they lie in `service/static/libraries`.

"""


def pins() -> dict[str, str]:
    """The version of each package that constraints.txt names, under its normalised name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    """Whether a package asks for this, installed with these extras where the versions were tested."""
    if requirement.marker is None:
        return True
    here = {name: str(value) for name, value in default_environment().items()}
    return any(requirement.marker.evaluate({**here, **TESTED_ON, "extra": extra}) for extra in ("", *extras))


def closure(pinned: dict[str, str]) -> list[str]:
    """The normalised names of everything that gaussearch[cpu,evaluate] requires and constraints.txt names.

    The file leaves CUDA libraries out, which a CUDA build of torch requires; so does this.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra_lines = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    waiting = [Requirement(line) for line in [*project["dependencies"], *extra_lines]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name not in pinned or (name, extras) in seen:
            continue
        seen.add((name, extras))
        required = map(Requirement, distribution(name).requires or [])
        waiting += [further for further in required if applies(further, extras)]
    return sorted({name for name, _ in seen})


def licence(metadata: PackageMetadata) -> str:
    """What a package says of its licence: the expression, else the short form, else the classifiers."""
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    short = metadata["License"].strip() if "License" in metadata else ""
    if short and len(short) <= LONGEST and "\n" not in short and short != "UNKNOWN":
        return short
    classifiers = [value for value in metadata.get_all("Classifier") or [] if value.startswith("License ::")]
    if not classifiers:
        raise ValueError(f"{metadata['Name']} {metadata['Version']} says nothing of its licence")
    return ", ".join(value.rpartition(" :: ")[2] for value in classifiers)


def render() -> str:
    """The file's text; PackageNotFoundError or ValueError where what is installed is not what was tested."""
    pinned = pins()
    rows = []
    for name in closure(pinned):
        found = distribution(name)
        # A build of torch has a local version, such as +cpu, and the pin takes any.
        if found.version.partition("+")[0] != pinned[name]:
            raise ValueError(f"{name} {found.version} is installed, and constraints.txt names {pinned[name]}")
        rows.append(f"| {found.metadata['Name']} | {pinned[name]} | {licence(found.metadata)} |")
    return HEADER + "\n".join(rows) + "\n" + PAGE + "\n".join(libraries()) + "\n"


def libraries() -> list[str]:
    """A line for each library of the page."""
    lines = []
    for library in json.loads((LIBRARIES / "libraries.json").read_text(encoding="utf-8")):
        (text,) = [path for path in library["files"] if path.endswith("/LICENSE")]
        where = f"../service/static/libraries/{text}"
        lines.append(f"- {library['name']} {library['version']}: {library['licence']} ([text]({where}))")
    return lines


def main() -> int:
    try:
        text = render()
    except (PackageNotFoundError, ValueError) as error:
        print(f"{error}: pip install -c constraints.txt '.[{','.join(EXTRAS)}]'", file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        LICENCES.write_text(text, encoding="utf-8")
        return 0
    current = LICENCES.exists() and LICENCES.read_text(encoding="utf-8") == text
    if not current:
        print("docs/licences.md is out of date: run python scripts/update_licences.py", file=sys.stderr)
    return int(not current)


if __name__ == "__main__":
    sys.exit(main())
