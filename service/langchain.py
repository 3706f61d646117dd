"""An index, or a service over one, as a retriever of LangChain. The only module that needs langchain-core.

from service.langchain import GaussianRetriever
from service.runs import LocalRunner, RemoteRunner

retriever = GaussianRetriever(runner=RemoteRunner("http://127.0.0.1:8080", api_key=None), encode=encode, top_k=5)
documents = retriever.invoke("what the user asks")
"""

from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from index import Gaussians
from service.runs import Asked, Result, Runner

__all__ = ["GaussianRetriever"]


class GaussianRetriever(BaseRetriever):
    """The documents nearest to a query in words, the best first, each with its id, its payload and its -KL as `score`.

    `runner` searches: service.runs.LocalRunner a directory, RemoteRunner a service. `encode` makes one Gaussian of a
    text. A document's content is its payload's column `text_column`. A payload column that is itself called `score` is
    kept as `payload_score`.
    """

    runner: Any
    encode: Callable[[str], Gaussians]
    top_k: int = 10
    text_column: str = "text"

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        runner: Runner = self.runner
        (found,) = runner.search(self.encode(query), Asked(self.top_k, candidates=None, nprobe=None, exact=False))
        return [
            Document(
                id=each.id,
                page_content=str(each.payload.get(self.text_column, "")),
                metadata=_metadata(each, self.text_column),
            )
            for each in found
        ]


def _metadata(found: Result, text_column: str) -> dict[str, Any]:
    names = {"score": "payload_score"}
    payload = {names.get(name, name): value for name, value in found.payload.items() if name != text_column}
    return {**payload, "score": found.score}
