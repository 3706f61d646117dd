"""Search a running service with one query of the sample, and show what came back.

The request is a plain one, as any client would send it: the query's mean and variance as JSON lists. `--body` prints
that request instead of sending it, for curl:

    python scripts/demo.py --body | curl -s http://127.0.0.1:8080/v1/search -H 'content-type: application/json' -d @-
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

SAMPLE = Path(__file__).resolve().parent.parent / "sample" / "wordnet" / "queries.parquet"


def read_query(path: Path, identifier: str) -> dict[str, Any]:
    queries = pq.read_table(path)
    chosen = queries.filter(pc.equal(queries["id"], identifier)).to_pylist()
    if not chosen:
        sys.exit(f"{path} has no query {identifier}")
    query: dict[str, Any] = chosen[0]
    return query


def search(url: str, body: dict[str, Any]) -> dict[str, Any]:
    # trust_env is off: a proxy setting has no business with a service on this machine.
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        response = client.post("/v1/search", json=body)
    if response.is_error:
        sys.exit(f"The service answered {response.status_code}: {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def show(query: dict[str, Any], answer: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("-KL", justify="right")
    table.add_column("document")
    table.add_column("")
    found = False
    for rank, result in enumerate(answer["results"], start=1):
        relevant = result["id"] == query["relevant"]
        found = found or relevant
        style = "bold green" if relevant else ""
        text = escape(result["payload"]["text"])
        table.add_row(str(rank), f"{result['score']:.2f}", text, "< relevant" if relevant else "", style=style)
    console.print(f"Query: [bold]{escape(query['text'])}[/bold]")
    console.print(f"The service sees not the words but a Gaussian: {len(query['mean'])} means and as many variances.")
    console.print()
    console.print(table)
    console.print()
    console.print(f"Scores are -KL(query || document) in nats. The search took {answer['took_ms']:.1f} ms.")
    if not found:
        console.print(f"The relevant document, {query['relevant']}, is not among the first {len(answer['results'])}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the service is (default %(default)s)")
    parser.add_argument("--queries", type=Path, default=SAMPLE, help="file of queries (default: the sample's)")
    parser.add_argument("--query", default="q32", help="id of the query to send (default %(default)s)")
    parser.add_argument("--top-k", type=int, default=5, help="documents to ask for (default %(default)s)")
    parser.add_argument("--body", action="store_true", help="print the request's JSON and send nothing")
    options = parser.parse_args()

    query = read_query(options.queries, options.query)
    body = {"mean": query["mean"], "variance": query["variance"], "top_k": options.top_k}
    if options.body:
        print(json.dumps(body))
        return
    try:
        answer = search(options.url, body)
    except httpx.TransportError as error:
        sys.exit(f"No answer from {options.url}: {error}")
    show(query, answer, Console())


if __name__ == "__main__":
    main()
