"""Choose the sample corpus: a few thousand documents and the queries about them, from a larger data set.

The queries are the first ones of the test split, so nothing in the sample trained the model that made the Gaussians.
Every query's relevant document is in the sample; the others are drawn at random with a fixed seed, so the same data
set always gives the same files. Rows keep the order and the columns they have in the source.

    python scripts/make_sample.py --from wordnet --to sample/wordnet
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SEED = 2023
NOT_SAMPLED = {"split"}  # every query kept is of the test split, so the column would say nothing


def choose(documents: pa.Table, queries: pa.Table, n_documents: int, n_queries: int) -> tuple[pa.Table, pa.Table]:
    """The sampled documents and queries; raises ValueError where the source cannot give that many."""
    position = {identifier: row for row, identifier in enumerate(documents["id"].to_pylist())}
    queries = queries.filter(pc.equal(queries["split"], "test"))
    known = [relevant in position for relevant in queries["relevant"].to_pylist()]
    queries = queries.filter(pa.array(known)).slice(0, n_queries)
    if queries.num_rows < n_queries or documents.num_rows < n_documents:
        raise ValueError(f"the source has {queries.num_rows} usable queries and {documents.num_rows} documents")
    rows = {position[relevant] for relevant in queries["relevant"].to_pylist()}
    if len(rows) > n_documents:
        raise ValueError(f"{n_queries} queries are about {len(rows)} documents, more than {n_documents}")
    others = [row for row in range(documents.num_rows) if row not in rows]
    rows.update(random.Random(SEED).sample(others, n_documents - len(rows)))
    columns = [name for name in queries.column_names if name not in NOT_SAMPLED]
    return documents.take(pa.array(sorted(rows))), queries.select(columns)


def write(table: pa.Table, path: Path) -> None:
    # Dictionaries and statistics cost more than they save: the values are nearly all distinct and never filtered on.
    pq.write_table(
        table.combine_chunks(),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        write_statistics=False,
    )
    print(f"{path.name}: {table.num_rows} rows, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder of the full data set")
    parser.add_argument("--to", dest="target", type=Path, required=True, help="folder to write")
    parser.add_argument("--documents", type=int, default=4000, help="documents to keep (default %(default)s)")
    parser.add_argument("--queries", type=int, default=400, help="queries to keep (default %(default)s)")
    options = parser.parse_args()

    documents = pq.read_table(options.source / "documents.parquet")
    queries = pq.read_table(options.source / "queries.parquet")
    try:
        documents, queries = choose(documents, queries, options.documents, options.queries)
    except ValueError as error:
        parser.error(str(error))
    options.target.mkdir(parents=True, exist_ok=True)
    write(documents, options.target / "documents.parquet")
    write(queries, options.target / "queries.parquet")
    # copyfile, not copy: a read-only source must not make the copy read-only too.
    shutil.copyfile(options.source / "LICENSE", options.target / "LICENSE")


if __name__ == "__main__":
    main()
