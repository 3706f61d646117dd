"""A model of texts, found, loaded and ready to encode."""

from collections.abc import Callable
from pathlib import Path

import torch

from index.errors import ModelError
from index.records import ModelRecord
from index.text.config import EncoderConfig, HeadConfig, MrlConfig, PooledConfig, read_config
from index.text.head import HEAD_FILE, HeadEncoder, Heads
from index.text.mrl import MrlEncoder, Projections
from index.text.pooled import PooledEncoder
from index.text.precision import DTYPES, TextPrecision, choose_precision
from index.text.protocol import Role, TextEncoder
from index.text.references import MEAN_FILE, MODULES_FILE, find_model, fingerprint
from index.text.sentences import SentenceModel
from index.text.weights import broken
from index.vectors import resolve_device

__all__ = ["load_encoder"]


def load_encoder(
    reference: str | Path, *, device: str = "auto", precision: TextPrecision = TextPrecision.AUTO
) -> TextEncoder:
    """The encoder of a model: a folder, `package:NAME` of an installed package that holds one, or `hub:NAME`.

    The folder has an encoder.json (index.text.config), or else is a checkpoint of multivariate_ir, or a
    sentence-transformers model, whose token vectors are pooled. Nothing but `hub:NAME` is fetched. Raises ModelError,
    and DeviceUnavailableError.
    """
    name = str(reference)
    folder = find_model(name, download=name.startswith("hub:"))
    config = read_config(folder) or _plain(folder)
    on = resolve_device(device)
    dtype = DTYPES[choose_precision(precision, on)]
    base = None if isinstance(config, MrlConfig) else find_model(config.base, within=folder)
    marks = _marks(folder, config, base)
    if isinstance(config, HeadConfig):
        _require_base(name, config, marks[0])
    label = name if ":" in name and not Path(name).is_dir() else folder.resolve().name

    def record(k: int) -> ModelRecord:
        with broken(f"{folder}: its Gaussians are of {k} dimensions"):
            return ModelRecord(name=label[:200], encoder=config.encoder, k=k, fingerprint=marks[-1])

    encoder = _encoder(folder, config, base, record, on, dtype)
    _require_gaussians(folder, encoder)
    if _marks(folder, config, base) != marks:
        raise ModelError(f"{folder}: it was changed while it was loaded; load it again when it no longer is")
    return encoder


def _marks(folder: Path, config: EncoderConfig, base: Path | None) -> list[str]:
    """Fingerprints: of the base, where there is one, and of all that decides."""
    of_base = [] if base is None else [fingerprint(base, None)]
    return [*of_base, fingerprint(folder, config, *of_base)]


def _encoder(
    folder: Path,
    config: EncoderConfig,
    base: Path | None,
    record: Callable[[int], ModelRecord],
    on: torch.device,
    dtype: torch.dtype,
) -> TextEncoder:
    if isinstance(config, MrlConfig):
        projections = Projections(folder, config)
        return MrlEncoder(record(len(projections.mean)), folder, projections, on, dtype)
    assert base is not None  # noqa: S101 (of these there always is one)
    if isinstance(config, PooledConfig):
        model = SentenceModel(base, on, dtype)
        return PooledEncoder(record(model.dimensions), model, on)
    heads = Heads.load(folder / HEAD_FILE)
    return HeadEncoder(record(len(heads.document.mean)), config, heads, SentenceModel(base, on, dtype), on)


def _require_gaussians(folder: Path, encoder: TextEncoder) -> None:
    """Raises ModelError where parts that can be read do not go together, rather than at the first text of a search."""
    for role in Role:
        with broken(f"{folder}: it can be read, and makes no Gaussian of a {role.value}"):
            encoder.encode(["text"], role)


def _plain(folder: Path) -> EncoderConfig:
    """What a folder without an encoder.json is."""
    if (folder / MEAN_FILE).exists():
        return MrlConfig()
    if (folder / MODULES_FILE).exists():
        return PooledConfig(base=".")
    raise ModelError(
        f"{folder}: it holds no encoder.json, no checkpoint of multivariate_ir ({MEAN_FILE}), and no model of "
        f"sentence-transformers ({MODULES_FILE})"
    )


def _require_base(name: str, config: HeadConfig, base_mark: str) -> None:
    if config.base_fingerprint is not None and config.base_fingerprint != base_mark:
        raise ModelError(
            f"{name}: its heads were trained over another model than {config.base} is here (fingerprint "
            f"{config.base_fingerprint[:12]}, here {base_mark[:12]}); install the version that they were trained over"
        )
