"""The surface of the library: its names, its tree of errors, and which module may import what."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import index
from index import errors

ROOT = Path(__file__).parent.parent


def test_the_exported_names_are_pinned() -> None:
    assert sorted(index.__all__) == [
        "AddOptions", "BuildOptions", "BuildSummary", "ChangeSummary", "Columns", "CompactOptions", "Corpus",
        "Document", "Effort", "Encoding", "Evidence", "Explanation", "Filter", "GaussearchError", "Gaussians",
        "GenerationNotFoundError", "IndexDirectory", "LocalSearcher", "Manifest", "Precision", "Progress", "Ranking",
        "Retention", "Searcher", "Standardisation", "VarianceAs", "WriteOptions", "add_documents", "back_up",
        "build_index", "compact_index", "delete_documents", "encode_documents", "encode_queries", "negative_kl",
        "restore", "roll_back",
    ]  # fmt: skip


def modules(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", [*modules("index"), *modules("service")])
def test_every_module_says_what_it_is_for_and_has_what_it_exports(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    exported = getattr(module, "__all__", [])
    assert len(set(exported)) == len(exported)
    for export in exported:
        assert hasattr(module, export)


def error_classes() -> list[type[errors.GaussearchError]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return [member for _, member in members if issubclass(member, errors.GaussearchError)]


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for indent, name in re.findall(r"^    ([│├└─ ]*)([A-Z]\w+Error)\b", inspect.getdoc(errors) or "", re.MULTILINE):
        depth = len(indent) // 4
        path = [*path[:depth], name]
        drawn[name] = path[depth - 1] if depth else "Exception"
    assert drawn == {error.__name__: error.__bases__[0].__name__ for error in error_classes()}
    assert all(len(error.__bases__) == 1 for error in error_classes())


def test_every_error_is_exported_with_a_code_of_its_own() -> None:
    assert sorted(errors.__all__) == sorted(error.__name__ for error in error_classes())
    codes = [error.__dict__.get("code") for error in error_classes()]
    assert None not in codes
    assert len(set(codes)) == len(codes)


def imports(package: str) -> Iterator[tuple[str, str]]:
    """The file and the top-level package of every import in the Python files below a folder."""
    for file in sorted((ROOT / package).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield name, (node.module or "").partition(".")[0]


def test_the_index_knows_nothing_of_the_service_or_of_http() -> None:
    above = {"service", "fastapi", "starlette", "uvicorn", "httpx", "typer", "rich"}
    assert [(file, name) for file, name in imports("index") if name in above] == []


def test_faiss_is_imported_behind_a_few_seams_alone() -> None:
    assert {file for package in ("index", "service") for file, name in imports(package) if name == "faiss"} == {
        "index/codes.py",
        "index/factory.py",
        "index/faiss_reading.py",
        "index/graph.py",
        "index/list_codes.py",
        "index/scalar_codes.py",
        "index/vectors.py",
    }


def test_nothing_imports_from_the_scripts() -> None:
    assert [
        (file, name) for package in ("index", "service") for file, name in imports(package) if name == "scripts"
    ] == []


def test_pickle_is_imported_nowhere_in_the_product() -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    found = {(file, name) for package in ("index", "service") for file, name in imports(package) if name in forbidden}
    # The one reader of foreign pickles replaces what pickle would call.
    assert found == {("index/formats/safe_pickle.py", "pickle")}
