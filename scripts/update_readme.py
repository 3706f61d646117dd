"""Writes the reference tables of README.md out of the code: settings, build options and error codes.

python scripts/update_readme.py            rewrites what lies between the <!-- table: ... --> marks
python scripts/update_readme.py --check    changes nothing, and exits with 1 where a table is out of date
"""

import sys
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from index.build_options import BuildOptions, CompactOptions, EncodeOptions, WriteOptions
from index.errors import GaussearchError, IndexDirectoryError, InvalidInputError, ResourceError
from service import server  # noqa: F401 (brings all that raises errors, which the command imports when it serves)
from service.cli import app
from service.cluster.options import ClusterSettings
from service.options import fields_of, option_name, variable_of
from service.problems import PROBLEMS, ServiceError
from service.runs import RemoteError
from service.schemas import SearchOptions, SimilarRequest
from service.settings import ENV_PREFIX, ServiceSettings

ABSTRACT = {InvalidInputError, IndexDirectoryError, ResourceError, ServiceError}
"""Errors that only their subclasses are raised as."""

COMMON = set(WriteOptions.model_fields)

README = Path(__file__).resolve().parent.parent / "README.md"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def options(model: type[BaseModel]) -> str:
    rows = []
    for name, field in fields_of(model).items():
        default = field.default.value if isinstance(field.default, Enum) else field.default
        shown = "required" if default is PydanticUndefined else "" if default is None else f"`{default}`"
        variable = variable_of(name, field, ENV_PREFIX)
        rows.append([f"`{option_name(name)}`", f"`{variable}`" if variable else "", shown, str(field.description)])
    return table(["option", "variable", "default", "meaning"], rows)


def descendants(kind: type[GaussearchError]) -> set[type[GaussearchError]]:
    return {kind}.union(*map(descendants, kind.__subclasses__()))


def errors() -> str:
    rows = []
    # Scripts have errors of their own, which may have been imported, too.
    ours = {kind for kind in descendants(GaussearchError) if kind.__module__.split(".")[0] in ("index", "service")}
    for kind in ours | {RemoteError}:
        problem = PROBLEMS.get(kind)
        if problem is not None:
            rows.append((str(problem.status.value), f"`{kind.code}`", f"{problem.title}."))
        elif kind not in ABSTRACT:
            rows.append(("command line", f"`{kind.code}`", (kind.__doc__ or "").split("\n")[0]))
    return table(["status", "code", "meaning"], sorted(rows))


def request_options() -> str:
    rows = []
    for name, field in {**SearchOptions.model_fields, **SimilarRequest.model_fields}.items():
        default = "" if field.default is None else f"`{str(field.default).lower()}`"
        only = " `/similar` only." if name not in SearchOptions.model_fields else ""
        rows.append([f"`{name}`", default, f"{field.description}{only}"])
    return table(["option", "default", "meaning"], rows)


def write_options() -> str:
    """What the commands that change an index share, and what is compact's own; add takes its columns as build does."""
    rows = [
        *((name, field, "all that publish") for name, field in WriteOptions.model_fields.items()),
        *((name, field, "compact") for name, field in CompactOptions.model_fields.items() if name not in COMMON),
    ]
    cells = []
    for name, field, command in rows:
        default = "" if field.default is None else f"`{field.default}`"
        cells.append(
            [f"`{option_name(name)}`", command, f"`{ENV_PREFIX}{name.upper()}`", default, str(field.description)]
        )
    return table(["option", "command", "variable", "default", "meaning"], cells)


def command_options(name: str) -> str:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    rows = []
    for parameter in command.params:
        if parameter.name != "help":
            default = parameter.default
            shown = "required" if parameter.required else "" if default is None else f"`{default}`"
            rows.append([f"`{parameter.opts[0]}`", shown, parameter.help])
    return table(["option", "default", "meaning"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": lambda: options(ServiceSettings),
    "cluster settings": lambda: options(ClusterSettings),
    "build options": lambda: options(BuildOptions),
    "encode options": lambda: options(EncodeOptions),
    "write options": write_options,
    "search options": lambda: command_options("search"),
    "evaluate options": lambda: command_options("evaluate"),
    "request options": request_options,
    "error codes": errors,
}


def updated(text: str) -> str:
    """The README with every table as the code has it; ValueError where a mark is missing."""
    for name, make in TABLES.items():
        before, opening, rest = text.partition(f"<!-- table: {name} -->\n")
        _, closing, after = rest.partition("<!-- end -->")
        if not opening or not closing:
            raise ValueError(f"README.md has no marks for the table {name!r}")
        text = f"{before}{opening}{make()}\n{closing}{after}"
    return text


def main() -> int:
    before = README.read_text(encoding="utf-8")
    after = updated(before)
    if "--check" not in sys.argv[1:]:
        README.write_text(after, encoding="utf-8")
        return 0
    if after != before:
        print("README.md is out of date: run python scripts/update_readme.py", file=sys.stderr)
    return int(after != before)


if __name__ == "__main__":
    sys.exit(main())
