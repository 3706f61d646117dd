"""What records of an index directory are made of: strict models, and the fields that they share."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from index.gaussians import MAX_DIMENSIONS

__all__ = [
    "MOST",
    "Blake3",
    "Digest",
    "Dimensions",
    "FileEntry",
    "ModelRecord",
    "NonNegativeInt",
    "PositiveInt",
    "SegmentId",
    "Share",
    "Strict",
]

MOST: Final = 1 << 48
"""No count or size is larger: what is computed from one fits into 64 bits and a float64."""

PositiveInt = Annotated[int, Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
Dimensions = Annotated[int, Field(gt=0, le=MAX_DIMENSIONS)]
Blake3 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SegmentId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A record that is what it says: no field more, none of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(Strict):
    """Size and checksum of one file."""

    bytes: NonNegativeInt
    blake3: Blake3


class ModelRecord(Strict):
    """The model that made Gaussians of texts. `fingerprint` is the same where all that decides them is: weights,
    tokenizer, settings. `name` is what people call it."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    encoder: Literal["mrl", "head", "pooled"]
    k: Dimensions
    fingerprint: Blake3
