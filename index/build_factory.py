"""The second half of a build of kind faiss: an index of FAISS's factory for each segment, in the projected space."""

import functools

from index.build_fit import CodedIndex, CodesForm, Fitting, measured_recall
from index.build_ladder import Ladder, steps
from index.calibration import CANDIDATE_SECONDS, MOST_CANDIDATES, NUMBER_SECONDS
from index.codes_record import CodesRecord, FactoryRecord
from index.factory_codebook import FactoryCodebook
from index.factory_scanning import FactoryScanner

__all__ = ["build_factory"]

STEP = 1.15


def build_factory(fitting: Fitting) -> CodedIndex:
    """Makes the plan's index of each segment, and chooses its candidates and, where it has lists, its nprobe.

    Raises NotReachedError where the plan leaves them open and none reach its recall, BuildError for a string of which
    FAISS makes nothing.
    """
    plan, projection, at = fitting.plan, fitting.projection, fitting.target[1]
    factory = plan.factory or "Flat"
    model = fitting.calibration.model(fitting.sample)
    dimensions = plan.code_bytes or model.shortlist_dimensions(projection.energies.numpy(), fitting.target[0], at)
    name, coder, entry = fitting.kept_codebook(
        dimensions,
        FactoryCodebook.from_bytes,
        functools.partial(FactoryCodebook.fit, projection, factory, dimensions, fitting.vectors),
    )
    segments = fitting.encode(CodesForm(coder, entry.blake3))
    fitting.progress.phase("measuring recall", None)
    indexes = [coder.read(fitting.file(segment, "vectors.faiss"), segment.documents) for segment in segments]
    scanner, lists = FactoryScanner(indexes, coder, fitting.standardisation, None), indexes[0].lists
    count, queries = max(MOST_CANDIDATES, plan.candidates or 0) + 1, fitting.held_out.gaussians
    ladder = Ladder(
        fitting,
        f"{factory}, with lists",
        steps(1, lists or 1, STEP),
        lambda nprobe: scanner.scan(queries, count, nprobe),
    )
    seconds = NUMBER_SECONDS * dimensions * len(fitting.store) / (lists or 1)

    def cost(nprobe: int, candidates: int) -> float:
        return seconds * nprobe + CANDIDATE_SECONDS * candidates

    if plan.candidates is not None:
        nprobe, candidates = ladder.given(plan.candidates, 1)
    else:
        nprobe, candidates = ladder.cheapest(at, cost)
    probes, pairs = [[at, nprobe]], [[at, candidates]]
    if ladder.deeper is not None:
        more, its = ladder.cheapest_or_all(ladder.deeper, cost)
        probes.append([ladder.deeper, max(nprobe, more)])
        pairs.append([ladder.deeper, max(candidates, its)])
    size = sum((fitting.folder(segment) / "vectors.faiss").stat().st_size for segment in segments)
    record = CodesRecord(
        codebook=name,
        file=entry,
        code_bytes=max(1, round(size / len(fitting.store))),
        dimensions=coder.dimensions,
        candidates=pairs,
        breadth=1.0,
        factory=FactoryRecord(
            factory=factory, lists=lists, nprobe=probes if lists else None, documents=len(fitting.store)
        ),
    )
    return CodedIndex(segments, record, measured_recall(fitting, ladder.ranks(nprobe)[1::2], candidates))
