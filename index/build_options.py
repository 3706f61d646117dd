"""Everything a build can be told, declared once: the command line and the README's table follow it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from index.encoding import Encoding
from index.manifest import IndexKind
from index.rows import VarianceAs

__all__ = ["BuildOptions"]


class BuildOptions(BaseModel):
    """The options of `gaussearch build` besides its corpus and its index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    device: Annotated[str, Field(description="Where to encode: auto, cpu, cuda or cuda:N.")] = "auto"
    id_column: Annotated[str, Field(description="Column of the document ids, strings or integers.")] = "id"
    mean_column: Annotated[str, Field(description="Column of the means, k numbers each.")] = "mean"
    variance_column: Annotated[str, Field(description="Column of the variances, k numbers each.")] = "variance"
    variance_as: Annotated[
        VarianceAs, Field(description="What that column holds: variance, logvar (its logarithm) or std (its root).")
    ] = VarianceAs.VARIANCE
    on_error: Annotated[
        Literal["stop", "skip"], Field(description="A bad row: stop the build, or skip it and list it in rejected-to.")
    ] = "stop"
    rejected_to: Annotated[
        Path | None,
        Field(description="File that lists skipped rows; rejected.jsonl in the index directory if not set."),
    ] = None
    restart: Annotated[
        bool, Field(description="Discard an unfinished build in the index directory instead of resuming it.")
    ] = False
