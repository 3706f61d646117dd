"""How well an index still finds documents that were written since it was built, and when it is to be built anew.

Standardisation, projection, codes and what a search takes were chosen for the documents of the build. Those that come
later may be others. So the newest documents are asked for their neighbours, exactly and as a search does it, and the
recall of the build is compared with that. Of kind flat recall is 1; there the share of queries that the float32 scan
proves at once falls, and with it the speed.
"""

import numpy as np

from index.calibration import interval
from index.codes_record import GraphRecord
from index.documents import Numbers
from index.manifest import DriftRecord, Manifest
from index.searcher import LocalSearcher

__all__ = ["is_worth_measuring", "measure_drift", "rebuild_reason"]

MEASURED = 100
"""The newest documents, which are asked for their neighbours: an exact search each, all in one scan."""
WRITTEN_SHARE, FEWEST = 0.1, 100
"""The share of the index, and the number of documents, that must have been written since it was last measured."""
LEAST_PROVED = 0.9
LARGEST_TAIL = 0.5
"""Documents that are in no graph or list, over those that are, from which on the others are hardly worth having."""


def is_worth_measuring(manifest: Manifest) -> bool:
    """Whether enough documents have been written since it was last measured."""
    since = manifest.written - (manifest.drift.documents if manifest.drift is not None else 0)
    return since >= max(FEWEST, WRITTEN_SHARE * manifest.documents)


def rebuild_reason(manifest: Manifest) -> str | None:
    """Why a generation should be built anew, or compacted; None where nothing speaks for it."""
    if manifest.structure is not None:
        before = sum(entry.documents for entry in manifest.segments[: manifest.covered])
        after = sum(entry.live for entry in manifest.segments[manifest.covered :])
        if after > LARGEST_TAIL * before:
            what = "graph links" if isinstance(manifest.structure, GraphRecord) else "lists hold"
            return f"the {what} {before:,} documents, and {after:,} more are searched one by one: compact the index"
    return manifest.drift.due if manifest.drift is not None else None


def measure_drift(searcher: LocalSearcher, newest: Numbers) -> DriftRecord | None:
    """What searches find of the true best of these documents, the newest ones; None where there are none.

    `searcher` is of the generation that is to say so. Of `newest`, numbers (m,), the last MEASURED are asked.
    """
    manifest = searcher.manifest
    asked = newest[-MEASURED:]
    if not len(asked) or manifest.documents < 2:
        return None
    at = min(manifest.measured_recall.at if manifest.measured_recall is not None else 10, manifest.documents - 1)
    queries = searcher.store.batch(asked)
    if manifest.codes is None:
        share = searcher.proved_share(queries, at)
        due = None
        if share < LEAST_PROVED:
            due = (
                f"of the newest documents' searches {share:.0%} are proved by the first scan, the others take longer: "
                "gaussearch compact --retrain standardises for what documents have become"
            )
    else:
        # One more, since each finds itself.
        exact = searcher.search(queries, at + 1, exact=True)
        found = searcher.search(queries, at + 1)
        shares = [
            len(
                {*best.documents[best.documents != own][:at].tolist()} & {*its.documents[its.documents != own].tolist()}
            )
            / at
            for own, best, its in zip(asked.tolist(), exact, found, strict=True)
        ]
        share, due = float(np.mean(shares)), None
        target = manifest.measured_recall.target if manifest.measured_recall is not None else 0.0
        if interval(share, len(asked))[1] < target:
            due = (
                f"of the newest documents' true best {at} searches find {share:.3f}, and {target} was asked for: "
                f"gaussearch compact --retrain{' --queries FILE' if manifest.had_queries else ''} fits the index to "
                "what documents have become"
            )
    low, high = interval(share, len(asked))
    return DriftRecord(
        at=at,
        recall=share,
        low=low,
        high=high,
        queries=len(asked),
        documents=max(1, manifest.written),
        due=due,
    )
