"""Where a model lies, and what is the same where it is the same model.

A model is named by a folder, by `package:NAME`, an installed Python package that holds one, or by `hub:NAME`, one of
the Hugging Face hub: nothing else reaches out to the network.
"""

import importlib.util
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import orjson

from index.durable import checksum, measure
from index.errors import ModelError
from index.text.config import CONFIG_FILE, EncoderConfig, HeadConfig, PooledConfig

__all__ = ["HEAD_FILE", "MEAN_FILE", "MODULES_FILE", "VARIANCE_FILE", "find_model", "fingerprint"]

MEAN_FILE: Final = "projection_mean"
VARIANCE_FILE: Final = "projection_var"
MODULES_FILE: Final = "modules.json"
ROUTER_FILE: Final = "router_config.json"
ADAPTER_FILE: Final = "adapter_config.json"

MARKS: Final = (CONFIG_FILE, MEAN_FILE, MODULES_FILE)
"""Files of which the folder of a model has one."""

HEAD_FILE: Final = "head.safetensors"
PARTS: Final = ("query_model", "passage_model")
"""Folders of a checkpoint of two models."""

ALGORITHMS: Final = {"mrl": 1, "head": 1, "pooled": 1}
"""Counted up with every change of the code that makes other Gaussians of the same files: it decides them, too."""

DECIDING: Final = ("*.safetensors", "*.bin", "*.pt", "*.model", "*.txt", "*.json", "*.jinja", MEAN_FILE, VARIANCE_FILE)
"""Files that decide what a model makes of a text: weights, vocabularies, settings."""

LEFT_OUT: Final = (
    "training_args.bin",
    "optimizer.*",
    "scheduler.*",
    "scaler.pt",
    "trainer_state.json",
    "*_result.json",
    "*_results.json",
    "data_config.json",
    "openvino_model.*",
    "licen[cs]e*",
    "notice*",
    "copying*",
    "readme*",
    "requirements*",
    CONFIG_FILE,  # what it says counts, defaults too, and not how
)
"""Files among these that a training leaves beside a model, that other software loads, or that people read."""


def find_model(reference: str, *, within: Path | None = None, download: bool = False) -> Path:
    """The folder of a model. `within` is where a relative folder is looked for.

    With `download`, a model of the hub is fetched where it is not on this machine yet. Raises ModelError.
    """
    kind, _, name = reference.partition(":")
    if kind == "package" and name:
        return _in_package(name)
    if kind == "hub" and name:
        return _of_hub(name, download=download)
    folder = Path(reference) if within is None else within / reference
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: there is no such folder; name a folder of a model, package:NAME of an installed package, or "
            "hub:NAME"
        )
    return folder


def fingerprint(folder: Path, config: EncoderConfig | None, *others: str) -> str:
    """What stands for all that decides a model's Gaussians, in hexadecimal; `others` stand for its parts elsewhere.

    Without `config` it is that of a sentence-transformers model. Of a folder counts what is loaded: no checkpoints of
    its training, and no weights in other software's formats. Neither does how a base is named. Raises ModelError where
    files cannot be read, and for an adapter, which would be loaded over whatever model another folder holds by then, or
    the hub's cache.
    """
    settings: list[object] = [None]
    if config is not None:
        settings = [ALGORITHMS[config.encoder], config.model_dump(mode="json", exclude={"base", "base_fingerprint"})]
    parts: list[object] = [*settings, *others]
    try:
        parts.extend([name, measure(path).blake3] for name, path in sorted(_deciding_files(folder, config)))
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error}") from error
    return checksum(orjson.dumps(parts))


def _deciding_files(folder: Path, config: EncoderConfig | None) -> Iterator[tuple[str, Path]]:
    """Files, and what they are called in the folder."""
    if isinstance(config, PooledConfig):
        return
    if isinstance(config, HeadConfig):
        if (folder / HEAD_FILE).is_file():
            yield HEAD_FILE, folder / HEAD_FILE
        return
    for place in dict.fromkeys(_modules(folder) if config is None else ("", *PARTS)):
        for path in (folder / place).iterdir() if (folder / place).is_dir() else ():
            if path.name == ADAPTER_FILE:
                raise ModelError(
                    f"{path}: it is an adapter over a model that lies elsewhere, whose weights are no part of this "
                    "folder: merge the two (merge_and_unload of peft), save what comes of it without this file, and "
                    "name that folder"
                )
            left_out = path.name.startswith(".") or any(fnmatch(path.name.lower(), name) for name in LEFT_OUT)
            if not left_out and any(map(path.match, DECIDING)) and path.is_file():
                yield f"{place}/{path.name}", path


def _modules(folder: Path, place: str = "", above: tuple[Path, ...] = ()) -> Iterator[str]:
    """The folders in which a sentence-transformers model has its modules, its own first; relative, and as they are
    named: a link is followed, as it is where the model is loaded."""
    here = (folder / place).resolve()
    # A module may lie in the folder itself; and links to a folder around it would lead on without end.
    if here in above:
        return
    yield place
    named = _named(here / ROUTER_FILE, lambda router: list(router["types"]))
    if not place:
        named += _named(here / MODULES_FILE, lambda modules: [module["path"] for module in modules])
    for name in named:
        yield from _modules(folder, f"{place}/{name}" if place else name, (*above, here))


def _named(path: Path, read: Callable[[Any], list[Any]]) -> list[str]:
    """Folders that a file names; none where it is damaged, of which loading the model will tell."""
    try:
        return [name for name in read(orjson.loads(path.read_bytes())) if isinstance(name, str)]
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _in_package(name: str) -> Path:
    imported = name.replace("-", "_")
    if imported != name and imported.isidentifier():
        raise ModelError(
            f"package:{name}: a package is named as it is imported, without dashes: did you mean package:{imported}?"
        )
    if not name.isidentifier():
        # With a dot, finding it would import what is before: code that the name of a model is no reason to run.
        raise ModelError(f"package:{name}: a model lies in a package at the top, whose name has no dots")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"package:{name}: no such package is installed here: pip install {name.replace('_', '-')}")
    found = {
        path.parent for place in spec.submodule_search_locations for mark in MARKS for path in Path(place).rglob(mark)
    }
    # What lies in a model's folder, such as the base of a head, is a part of it.
    models = [folder for folder in found if not any(other in folder.parents for other in found)]
    if len(models) != 1:
        raise ModelError(f"package:{name}: it holds {len(models)} models, where it must hold one")
    return models[0]


def _of_hub(name: str, *, download: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ModelError("models of texts need more: pip install 'gaussearch[text]'") from error
    try:
        return Path(snapshot_download(name, local_files_only=not download))
    except LocalEntryNotFoundError as error:
        more = "" if download else f"; name it as --model hub:{name} once, to fetch it"
        raise ModelError(
            f"hub:{name}: it is not on this machine{', nor to be had' if download else ''}{more}"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"hub:{name}: it is not to be had: {error}") from error
