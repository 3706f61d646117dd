"""The service that anyone would write first: FastAPI, one IndexFlatIP, JSON lists, a search per request.

The benchmark holds the product against it, so it is written as one would write it who knows FastAPI and FAISS: a `def`
endpoint that FastAPI runs on its threads, float32 throughout, FAISS releasing the interpreter's lock while it searches,
no access log. It has no batching, no rescoring and no check of what it is sent beyond the model's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import faiss
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Query(BaseModel):
    """A diagonal Gaussian."""

    mean: list[float]
    variance: list[float]
    top_k: int = 10


class Payload(BaseModel):
    """What is shown of a document."""

    text: str


class Result(BaseModel):
    """A document and its -KL(Q||D)."""

    id: str
    score: float
    payload: Payload


class Answer(BaseModel):
    """Documents, best first."""

    results: list[Result]


def create_app(folder: Path) -> FastAPI:
    """The application over vectors.faiss, simplified encodings, and documents.json, an [id, text] of each."""
    vectors = faiss.read_index(str(folder / "vectors.faiss"))
    documents = json.loads((folder / "documents.json").read_text(encoding="utf-8"))
    app = FastAPI()

    @app.post("/search")
    def search(query: Query) -> Answer:
        mean = np.array(query.mean, dtype=np.float32)
        variance = np.array(query.variance, dtype=np.float32)
        vector = np.concatenate([[1.0], variance, mean * mean, mean]).astype(np.float32)
        scores, rows = vectors.search(vector[None], query.top_k)
        constant = float(np.log(variance).sum()) + len(variance)
        results = []
        for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
            identifier, text = documents[row]
            results.append(Result(id=identifier, score=0.5 * (score + constant), payload=Payload(text=text)))
        return Answer(results=results)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where vectors.faiss and documents.json lie")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(create_app(options.folder), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
