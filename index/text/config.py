"""encoder.json: what kind of encoder a folder holds, and what its weights do not say."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from index.errors import ModelError
from index.records import MOST, Strict

__all__ = ["CONFIG_FILE", "EncoderConfig", "HeadConfig", "MrlConfig", "PooledConfig", "read_config"]

CONFIG_FILE: Final = "encoder.json"

Beta = Annotated[FiniteFloat, Field(gt=0, description="Softplus makes a variance log(1 + exp(beta x)) / beta.")]
Reference = Annotated[
    str, Field(min_length=1, description="A sentence-transformers model: a folder in this one, package:NAME, hub:NAME.")
]
Tokens = Annotated[int, Field(ge=4, le=MOST, description="[CLS], [VAR] and [SEP] are three.")]


class MrlConfig(Strict):
    """A checkpoint of Multivariate Representation Learning, whose files do not say how it was trained.

    The defaults are those with which multivariate_ir reproduces its results: `beta` of softplus, the most tokens that
    are read, [CLS], [VAR] and [SEP] among them, and whether means are kept small, with its `C`.
    """

    format: Literal[1] = 1
    encoder: Literal["mrl"] = "mrl"
    beta: Beta = 2.5
    query_tokens: Tokens = 32
    document_tokens: Tokens = 256
    clamp_mean: Literal["clamp", "scale"] | None = None
    c: Annotated[FiniteFloat, Field(gt=0)] = 2.0


class HeadConfig(Strict):
    """Two linear heads over the sentence embeddings of a frozen model; index.text.head says what head.safetensors
    holds. With `base_fingerprint` no other base is taken."""

    format: Literal[1] = 1
    encoder: Literal["head"] = "head"
    base: Reference
    base_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    beta: Beta = 2.5


class PooledConfig(Strict):
    """A frozen model without training: index.text.pooled says what the numbers are."""

    format: Literal[1] = 1
    encoder: Literal["pooled"] = "pooled"
    base: Reference


EncoderConfig = MrlConfig | HeadConfig | PooledConfig

_ADAPTER: TypeAdapter[EncoderConfig] = TypeAdapter(Annotated[EncoderConfig, Field(discriminator="encoder")])


def read_config(folder: Path) -> EncoderConfig | None:
    """What encoder.json of a model's folder says; None where there is none. Raises ModelError."""
    path = folder / CONFIG_FILE
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise ModelError(f"{path}: {field + ': ' if field else ''}{problem['msg']}") from error
