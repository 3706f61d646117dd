"""An unfinished build: what it is building, and the segments it has already read.

staging/
  plan.json       what is built (corpus, settings, generation); a build that resumes must have the same
  00000.json      a segment whose documents are all written, and where the corpus goes on after it
  ...
segments/<id>/    the documents of those segments; unknown to any manifest until the build publishes
"""

import shutil
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.document_writing import WrittenSegment
from index.durable import checksum, measure, sync, write_atomically
from index.errors import BuildError
from index.manifest import BuildSettings
from index.records import FileEntry
from index.standardisation import MomentAccumulator
from index.storage import IndexDirectory
from index.text.precision import TextPrecision

__all__ = ["BuildPlan", "ReadSegment", "Staging"]


class BuildPlan(BuildSettings):
    """What decides the content of an index, and nothing else: two builds with one plan make the same segments.

    `corpus` and `queries` are the digests of these. `model_precision` is what the model of a corpus of texts was asked
    to compute in.
    """

    corpus: str
    on_error: Literal["stop", "skip"]
    queries: str | None = None
    # Of texts alone.
    model_precision: Annotated[TextPrecision | None, Field(strict=False)] = None

    @property
    def settings(self) -> BuildSettings:
        """What of it a manifest keeps."""
        return BuildSettings(**{name: getattr(self, name) for name in BuildSettings.model_fields})

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stand for the plan."""
        # Without a model it is what it was before there were any: an index of that time is not built anew.
        left_out = {name for name in ("model", "model_precision") if getattr(self, name) is None}
        return checksum(self.model_dump_json(exclude=left_out).encode())[:12]


class _PlanFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int
    plan: BuildPlan
    # Where its segments are made: what is known of each differs.
    by: Literal["here", "ray"] = "here"


_BEGUN = {"here": "on one machine, without --ray", "ray": "on a Ray cluster, with --ray"}


class ReadSegment(BaseModel):
    """staging/NNNNN.json: a segment whose documents are written, and where the corpus goes on after it.

    `next_record` is (index of the file, ordinal of the record). `rejected` counts the rows left out up to there, and
    `rejected_file` is what the file that lists them was. The rest are the moments of its Gaussians.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: Annotated[int, Field(gt=0)]
    k: Annotated[int, Field(gt=0)]
    next_record: tuple[int, int]
    rejected: int
    rejected_file: FileEntry | None
    files: dict[str, FileEntry]
    mean: list[float]
    squared_deviations: list[float]
    variance_sum: list[float]

    @classmethod
    def of(
        cls, written: WrittenSegment, next_record: tuple[int, int], rejected: tuple[int, FileEntry | None]
    ) -> "ReadSegment":
        """A segment as it has been written; `rejected` is the count of rows left out and the file that lists them."""
        moments = written.moments
        return cls(
            documents=moments.count,
            k=len(moments.mean),
            next_record=next_record,
            rejected=rejected[0],
            rejected_file=rejected[1],
            files=written.files,
            mean=moments.mean.tolist(),
            squared_deviations=moments.squared_deviations.tolist(),
            variance_sum=moments.variance_sum.tolist(),
        )

    def moments(self) -> MomentAccumulator:
        """The moments of the segment's Gaussians."""
        accumulator = MomentAccumulator(self.k)
        accumulator.count = self.documents
        accumulator.mean = np.array(self.mean)
        accumulator.squared_deviations = np.array(self.squared_deviations)
        accumulator.variance_sum = np.array(self.variance_sum)
        return accumulator


class Staging:
    """The unfinished build of one index. The caller holds the index's writer lock.

    Segment ids hold the plan and the generation that the build will publish, so no build ever writes into a segment
    that a searcher may have open.
    """

    def __init__(self, directory: IndexDirectory, plan: BuildPlan, generation: int) -> None:
        self.path = directory.staging
        self.directory = directory
        self.plan = plan
        self.generation = generation

    @classmethod
    def open(
        cls, directory: IndexDirectory, plan: BuildPlan, *, by: Literal["here", "ray"] = "here", restart: bool
    ) -> "Staging":
        """Resumes the unfinished build in the directory, or starts one where there is none or `restart` is set.

        Raises BuildError where the unfinished build is one of something else, naming what differs, or was begun on Ray
        and is not to go on there, or the other way round.
        """
        plan_file = directory.staging / "plan.json"
        if plan_file.exists() and not restart:
            unfinished = _read_plan(plan_file)
            if directory.may_go_on(unfinished.generation):
                _require_same(plan_file, unfinished.plan, plan)
                if unfinished.by != by:
                    raise BuildError(
                        f"{plan_file.parent} holds an unfinished build that was begun {_BEGUN[unfinished.by]}: "
                        "finish it that way, or add --restart to discard it"
                    )
                return cls(directory, plan, unfinished.generation)
        staging = cls(directory, plan, directory.next_generation())
        staging.discard()
        for folder in (directory.staging, directory.segments):
            folder.mkdir(exist_ok=True)
        sync(directory.path)
        content = _PlanFile(generation=staging.generation, plan=plan, by=by)
        write_atomically(plan_file, content.model_dump_json(indent=2).encode())
        return staging

    def discard(self) -> None:
        """Removes the unfinished build and the segments that it has made."""
        self.close()
        self.directory.remove_unneeded()

    def close(self) -> None:
        """Removes what is known of a build that has been published."""
        shutil.rmtree(self.path, ignore_errors=True)

    def segment_id(self, ordinal: int) -> str:
        """What segment number `ordinal` is called."""
        return f"{self.plan.id}-{self.generation:08d}-{ordinal:05d}"

    def folder(self, ordinal: int) -> Path:
        """Where segment number `ordinal` lies."""
        return self.directory.segments / self.segment_id(ordinal)

    def record(self, ordinal: int) -> Path:
        """The file that says that the documents of segment number `ordinal` are complete."""
        return self.path / f"{ordinal:05d}.json"

    def keep(
        self,
        ordinal: int,
        written: WrittenSegment,
        next_record: tuple[int, int],
        rejected: tuple[int, FileEntry | None],
    ) -> ReadSegment:
        """Records that the documents of segment number `ordinal` are complete.

        `next_record` is where the corpus goes on, `rejected` the count of rows left out so far and the file that lists
        them. What a power cut takes of the segment does not match its checksum, and is read again.
        """
        segment = ReadSegment.of(written, next_record, rejected)
        self.write_record(ordinal, segment)
        return segment

    def write_record(self, ordinal: int, segment: ReadSegment) -> None:
        """Says that the documents of segment number `ordinal` are complete."""
        write_atomically(self.record(ordinal), segment.model_dump_json().encode(), synced=False)

    @property
    def rejected_file(self) -> Path:
        """Lists the rows that have been left out so far."""
        return self.path / "rejected.jsonl"

    def rejected_of(self, ordinal: int) -> Path:
        """Lists those of the slice that made segment number `ordinal`, where slices are read by themselves."""
        return self.path / f"rejected-{ordinal:05d}.jsonl"

    def finished_segments(self) -> list[ReadSegment]:
        """The segments that earlier runs read completely, in order, up to the first that is missing or damaged."""
        found: list[ReadSegment] = []
        while (segment := self.finished_segment(len(found), self.rejected_file)) is not None:
            found.append(segment)
        return found

    def finished_segment(self, ordinal: int, listed_in: Path) -> ReadSegment | None:
        """A segment that an earlier run read completely; None where it is missing or damaged, or the file that lists
        the rows left out, `listed_in`, is not as it was."""
        folder = self.folder(ordinal)
        try:
            segment = ReadSegment.model_validate_json(self.record(ordinal).read_bytes())
            if any(measure(folder / name) != entry for name, entry in segment.files.items()):
                return None
            listed = segment.rejected_file
            if listed is not None and measure(listed_in, size=listed.bytes) != listed:
                return None
        except (FileNotFoundError, ValidationError):
            return None
        return segment


def _read_plan(plan_file: Path) -> _PlanFile:
    try:
        return _PlanFile.model_validate_json(plan_file.read_bytes())
    except ValidationError as error:
        raise BuildError(f"{plan_file} is from another release or damaged: add --restart to discard it") from error


def _require_same(plan_file: Path, unfinished: BuildPlan, plan: BuildPlan) -> None:
    differing = [name for name in BuildPlan.model_fields if getattr(unfinished, name) != getattr(plan, name)]
    if differing:
        raise BuildError(
            f"{plan_file.parent} holds an unfinished build with another {' and '.join(differing)}: "
            "finish it with the command that began it, or add --restart to discard it"
        )
