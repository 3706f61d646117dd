"""The second half of a build of kind ivf-fastscan: segments are coded, their documents put into lists, and how many of
these a query looks into is chosen.

A build that is resumed finds the codebook, the segments that it coded and the lists, if these were finished.
"""

import math
from pathlib import Path

import numpy as np
import torch

from index.build_codes import coded
from index.build_fit import CodedIndex, Fitting, measured_recall
from index.build_ladder import Ladder, steps
from index.calibration import CANDIDATE_SECONDS, DIGIT_SECONDS
from index.clustering import cluster
from index.codes_record import CodesRecord, ListsRecord
from index.durable import checksum, write_atomically
from index.errors import CorruptIndexError
from index.list_scanning import ListScanner
from index.lists import Lists
from index.records import FileEntry
from index.untrusted import IndexFile

__all__ = ["build_lists"]

LISTS_PER_ROOT = 4
"""Lists for each of the root of the documents: the more, the fewer documents in those that hold the best, and the more
centroids to compare with."""
SAMPLE_PER_LIST, SAMPLE = 64, 1 << 17
"""Documents that lists are made by, for each and in all: what bounds the time and the memory that it takes."""
MOST_LISTS_BYTES = 1 << 34
"""More than lists of an earlier run have that are worth going on with."""
STEP = 1.15
SEED = 2023


def build_lists(fitting: Fitting, device: torch.device) -> CodedIndex:
    """Codes the staged documents and puts them into lists as the plan says.

    Raises NotReachedError where the codes do not reach the plan's recall with all lists, unless the plan fixes the
    candidates.
    """
    plan, at = fitting.plan, fitting.target[1]
    codes = coded(fitting, (1 + fitting.target[0]) / 2)
    path, lists, file = _listed(fitting, device)
    fitting.progress.phase("measuring recall", None)
    coder, total = codes.coder, len(lists.centroids)
    scanner = ListScanner(codes.codes, codes.shortlist, lists, coder, fitting.standardisation, 1.0, None)
    seconds = DIGIT_SECONDS * 2 * coder.code_bytes * len(fitting.store) / total

    def ladder(found: int) -> Ladder:
        queries = fitting.held_out.gaussians
        return Ladder(
            fitting, "scans of lists,", steps(1, total, STEP), lambda nprobe: scanner.scan(queries, found, nprobe)
        )

    def cost(nprobe: int, candidates: int) -> float:
        return seconds * nprobe + CANDIDATE_SECONDS * candidates

    first = ladder(codes.found)
    if plan.nprobe is not None:
        nprobe = min(plan.nprobe, total)
        candidates = plan.candidates or first.candidates(nprobe, at) or codes.candidates[0][1]
    elif plan.candidates is not None:
        nprobe, candidates = first.given(plan.candidates, 1)
    else:
        nprobe, candidates = first.cheapest(at, cost)
    nprobe, candidates = min(nprobe, total), min(candidates, codes.found)
    probes, pairs, breadth = [[at, nprobe]], [[at, candidates]], codes.found / candidates
    if first.deeper is not None and plan.nprobe is None:
        found = math.ceil(codes.breadth * codes.candidates[-1][1])
        more, its = ladder(found).cheapest_or_all(first.deeper, cost)
        probes.append([first.deeper, max(nprobe, more)])
        pairs.append([first.deeper, max(candidates, its, math.ceil(found / breadth))])
    record = CodesRecord(
        codebook=codes.name,
        file=codes.file,
        code_bytes=coder.code_bytes,
        dimensions=coder.dimensions,
        candidates=pairs,
        breadth=breadth,
        lists=ListsRecord(
            name=path.name,
            file=file,
            segments=len(codes.segments),
            lists=total,
            nprobe=probes,
            documents=len(fitting.store),
        ),
    )
    return CodedIndex(codes.segments, record, measured_recall(fitting, first.ranks(nprobe)[1::2], candidates))


def _listed(fitting: Fitting, device: torch.device) -> tuple[Path, Lists, FileEntry]:
    """Where the lists lie, themselves and their entry; they are made unless an earlier run has."""
    folder = fitting.staging.directory.structures
    folder.mkdir(exist_ok=True)
    path = folder / f"{fitting.staging.segment_id(0)}.safetensors"
    try:
        data = IndexFile(path, folders=1).contents(MOST_LISTS_BYTES)
        lists = Lists.from_bytes(data)
        if len(lists.members) == len(fitting.store):
            return path, lists, FileEntry(bytes=len(data), blake3=checksum(data))
    except (CorruptIndexError, ValueError):
        pass
    lists = _made(fitting, device)
    data = lists.to_bytes()
    write_atomically(path, data)
    return path, lists, FileEntry(bytes=len(data), blake3=checksum(data))


def _made(fitting: Fitting, device: torch.device) -> Lists:
    store, standardisation = fitting.store, fitting.standardisation
    lists = fitting.plan.lists or max(1, round(LISTS_PER_ROOT * math.sqrt(len(store))))
    fitting.progress.phase("clustering", None)
    drawn = np.random.default_rng(SEED).permutation(len(store))[: min(SAMPLE_PER_LIST * lists, SAMPLE)]
    centroids = cluster(store.batch(np.sort(drawn).astype(np.int64)), lists, standardisation, SEED, device)
    fitting.progress.phase("putting documents into lists", len(store))
    return Lists(centroids.numpy(), store.lists(centroids, standardisation, device, fitting.progress))
