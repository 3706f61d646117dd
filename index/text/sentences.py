"""A frozen sentence-transformers model: texts in, sentence embeddings and token vectors out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from index.errors import ModelError
from index.text.batched import readable
from index.text.protocol import Role
from index.text.quiet import no_bars
from index.text.weights import broken, detach_from_files, every_weight

__all__ = ["SentenceModel"]


class SentenceModel:
    """A model of `folder`, on a device. Nothing of it is fetched, and none of its code is run."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Raises ModelError where the folder does not hold a model, or sentence-transformers is not installed."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ModelError("models of texts need sentence-transformers: pip install 'gaussearch[text]'") from error
        what = f"{folder}: sentence-transformers cannot load it"
        with broken(what), no_bars(), every_weight(what) as poolers:
            self._model = SentenceTransformer(
                str(folder), device=str(device), local_files_only=True, trust_remote_code=False
            )
            self._require_text(folder)
            if poolers and self._reads_pooler():
                raise ModelError(f"{folder}: its files have no weights for {poolers[0]!r}, which it needs")
            self._model.to(dtype).eval()
            detach_from_files(self._model)

    def _require_text(self, folder: Path) -> None:
        """Raises ModelError for a model that reads more than text: sentence-transformers takes a text that is a path or
        an address of a picture, say, for the picture, and reads or fetches it. Whoever sends texts would choose what.

        A `message` is no string, and so none of what is encoded here is one.
        """
        others = set(map(str, self._model.modalities)) - {"text", "message"}
        if others:
            raise ModelError(
                f"{folder}: it reads {', '.join(sorted(others))} besides text, and would open texts that are paths or "
                "addresses of such; take a model of text alone"
            )

    def _reads_pooler(self) -> bool:
        """Whether embeddings come of a transformer's own pooler."""
        used = (
            params for module in self._model.modules() for params in getattr(module, "modality_config", {}).values()
        )
        return any(params["method_output_name"] != "last_hidden_state" for params in used)

    @property
    def dimensions(self) -> int:
        """The width of a sentence embedding: as the model's modules say, or of one, where they do not."""
        with broken("sentence-transformers cannot say how wide the model's embeddings are"):
            said = self._model.get_embedding_dimension()
            if isinstance(said, int):
                return said
            return int(self._model.encode_document([""], show_progress_bar=False).shape[1])

    def embeddings(self, texts: list[str], role: Role) -> Tensor:
        """Sentence embeddings (n, d), with the prompt that the model has for the role, if it has one."""
        embedded: Tensor = self._encode(role)(
            self._readable(texts), batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
        )
        return embedded

    def tokens(self, texts: list[str], role: Role) -> tuple[Tensor, Tensor, Tensor]:
        """Sentence embeddings (n, d), the vectors of tokens (n, t, d') that they are pooled of, and which of these are
        tokens of the text (n, t) and no padding."""
        features = self._encode(role)(
            self._readable(texts),
            batch_size=len(texts),
            convert_to_tensor=True,
            output_value=None,
            show_progress_bar=False,
        )
        try:
            names = ("sentence_embedding", "token_embeddings", "attention_mask")
            embeddings, tokens, mask = (torch.stack([each[name] for each in features]) for name in names)
        except KeyError as error:
            raise ModelError(f"the model has no {error}: without vectors of tokens they cannot be pooled") from error
        return embeddings, tokens, mask.bool()

    def _readable(self, texts: list[str]) -> list[str]:
        return readable(texts, self._model.max_seq_length)

    def _encode(self, role: Role) -> Callable[..., Any]:
        encode: Callable[..., Any] = self._model.encode_query if role is Role.QUERY else self._model.encode_document
        return encode
