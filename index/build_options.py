"""Everything a build can be told, declared once: the command line and the README's table follow it."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from index.encoding import Encoding
from index.manifest import IndexKind
from index.retention import MOST_HOURS, Retention
from index.rows import VarianceAs
from index.text.precision import TextPrecision
from index.text.protocol import Role

__all__ = [
    "NO_VARIABLE",
    "AddOptions",
    "BuildOptions",
    "CompactOptions",
    "EncodeOptions",
    "TextOptions",
    "WriteOptions",
]


NO_VARIABLE: Final = "no_variable"
"""Marks a field that the command line takes out of no environment variable."""


class WriteOptions(BaseModel):
    """The options of every command that publishes a generation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wait: Annotated[float, Field(ge=0, description="Seconds to wait for another process that writes to the index.")] = (
        0.0
    )
    keep_generations: Annotated[
        int, Field(ge=2, description="How many generations are kept, the one that is published among them.")
    ] = 2
    keep_hours: Annotated[
        float,
        Field(
            ge=0,
            le=MOST_HOURS,
            allow_inf_nan=False,
            description="Generations that are younger than so many hours are kept, too.",
        ),
    ] = 0.0

    @property
    def retention(self) -> Retention:
        """What they keep."""
        return Retention(self.keep_generations, 3600 * self.keep_hours)


class TextOptions(BaseModel):
    """How texts are made Gaussians, where there is a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[
        str | None,
        Field(
            description="Model that makes Gaussians of the sources' texts: its folder, package:NAME of an installed "
            "package, or hub:NAME. Without one the sources hold Gaussians. No variable names it: that of "
            "a service says nothing of what is built.",
            json_schema_extra={NO_VARIABLE: True},
        ),
    ] = None
    model_precision: Annotated[
        TextPrecision,
        Field(description="What the model computes in; auto: bfloat16 where that is measured to be faster."),
    ] = TextPrecision.AUTO
    device: Annotated[str, Field(description="Where to encode: auto, cpu, cuda or cuda:N.")] = "auto"
    id_column: Annotated[
        str, Field(description="Column of the ids, strings or integers; if it is id, of texts _id where there is one.")
    ] = "id"
    text_column: Annotated[str, Field(description="Column of the texts, where there is a model.")] = "text"
    title_column: Annotated[str, Field(description="Column of titles, if there is one: read before the texts.")] = (
        "title"
    )
    on_error: Annotated[
        Literal["stop", "skip"], Field(description="A bad row: stop there, or skip it and list it in rejected-to.")
    ] = "stop"


class EncodeOptions(TextOptions):
    """The options of `gaussearch encode` besides its files."""

    model: Annotated[
        str,
        Field(
            description="Model that makes the Gaussians: its folder, package:NAME of an installed package, hub:NAME."
        ),
    ]
    role: Annotated[Role, Field(description="What the texts are in a search: document or query.")] = Role.DOCUMENT
    rejected_to: Annotated[
        Path | None, Field(description="File that lists skipped rows; OUTPUT.rejected.jsonl if not set.")
    ] = None
    restart: Annotated[bool, Field(description="Discard what an interrupted run has encoded.")] = False


class AddOptions(WriteOptions, TextOptions):
    """The options of `gaussearch add` besides its corpus and its index."""

    mean_column: Annotated[str, Field(description="Column of the means, k numbers each.")] = "mean"
    variance_column: Annotated[str, Field(description="Column of the variances, k numbers each.")] = "variance"
    variance_as: Annotated[
        VarianceAs, Field(description="What that column holds: variance, logvar (its logarithm) or std (its root).")
    ] = VarianceAs.VARIANCE
    rejected_to: Annotated[
        Path | None,
        Field(description="File that lists skipped rows; rejected.jsonl in the index directory if not set."),
    ] = None


class BuildOptions(AddOptions):
    """The options of `gaussearch build` besides its corpus and its index."""

    kind: Annotated[
        IndexKind,
        Field(
            description="Index kind: flat scans every document's vector and is exact; fastscan scans codes "
            "ten to forty times as small, ivf-fastscan those in the lists nearest to the query, hnsw walks a graph and "
            "looks at some thousands of documents, faiss takes an index of FAISS's factory, and all but flat score the "
            "best exactly; auto chooses by corpus size "
            "and target recall, and says why."
        ),
    ] = IndexKind.FLAT
    target_recall: Annotated[
        float,
        Field(gt=0, lt=1, description="Recall that all that decides it is chosen for, where the kind is not flat."),
    ] = 0.99
    recall_at: Annotated[
        int, Field(ge=1, le=1000, description="How many of the best documents that recall is about.")
    ] = 10
    queries: Annotated[
        Path | None,
        Field(
            description="File of real queries: half to fit, a quarter each to choose and to measure; the corpus's own "
            "documents if not set. In any format and with the columns of the corpus."
        ),
    ] = None
    min_recall: Annotated[
        float | None, Field(gt=0, le=1, description="Publish nothing if the measured recall is below this.")
    ] = None
    code_bytes: Annotated[
        int | None,
        Field(
            ge=1,
            le=256,
            description="Bytes of a document's code, and projected dimensions of kinds hnsw and faiss; chosen if not "
            "set. No more are used than say something.",
        ),
    ] = None
    candidates: Annotated[
        int | None,
        Field(ge=1, description="Documents scored exactly, no fewer than are wanted; chosen if not set."),
    ] = None
    hnsw_m: Annotated[
        int,
        Field(
            ge=2,
            le=128,
            description="Links of a document on each level of the graph of hnsw (M); twice as many on the lowest.",
        ),
    ] = 24
    hnsw_ef_construction: Annotated[
        int, Field(ge=4, le=4096, description="Documents that the links of hnsw are chosen of (efConstruction).")
    ] = 120
    lists: Annotated[
        int | None,
        Field(ge=1, le=131_072, description="Lists of ivf-fastscan; four for each root of the documents if not set."),
    ] = None
    nprobe: Annotated[
        int | None, Field(ge=1, description="Lists that a query of ivf-fastscan looks into; chosen if not set.")
    ] = None
    factory: Annotated[
        str | None,
        Field(description="String of FAISS's index factory for kind faiss, such as IVF256,SQ8, in projected space."),
    ] = None
    encoding: Annotated[
        Encoding,
        Field(
            description="Vectors of kind flat on disk: simplified (3k+1 numbers), full (3k+2) or folded (2k+1). All "
            "find the same."
        ),
    ] = Encoding.SIMPLIFIED
    segment_docs: Annotated[
        int, Field(ge=1, le=10_000_000, description="Documents per segment: what an interrupted build keeps.")
    ] = 25_000
    restart: Annotated[
        bool, Field(description="Discard an unfinished build in the index directory instead of resuming it.")
    ] = False


class CompactOptions(WriteOptions):
    """The options of `gaussearch compact` besides its index."""

    retrain: Annotated[
        bool,
        Field(
            description="Build the index anew of its own documents, standardised, projected and measured for what they "
            "have become."
        ),
    ] = False
    queries: Annotated[
        Path | None,
        Field(description="With retrain: file of real queries, as for a build; documents if not set."),
    ] = None
    min_recall: Annotated[
        float | None, Field(gt=0, le=1, description="With retrain: publish nothing if the recall is below this.")
    ] = None
    device: Annotated[str, Field(description="Where to encode: auto, cpu, cuda or cuda:N.")] = "auto"
    restart: Annotated[bool, Field(description="With retrain: discard an unfinished build in the index directory.")] = (
        False
    )
