"""A model of kind `mrl` that can be trained: a transformer, two projections, and the checkpoint that they are saved as.

index.text.mrl says what the checkpoint holds, and reads it: texts are tokenised here as they are there.
"""

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from model_folder import refuse_adapter, require_writable, whole_model
from torch import Tensor, nn
from torch.nn.functional import normalize

from index.errors import ModelError
from index.text.batched import LEAST_VARIANCE, readable
from index.text.config import CONFIG_FILE, MrlConfig
from index.text.mrl import FOLDERS, VARIANCE_TOKEN
from index.text.protocol import Role
from index.text.quiet import no_bars
from index.text.references import MEAN_FILE, MODULES_FILE, VARIANCE_FILE
from index.text.weights import broken, detach_from_files, every_weight

TOGETHER = {"cpu": 32, "cuda": 512}
"""Texts of about a length that go through the transformer together: little of them is padding."""

FIRST_LENGTH = 3.0
"""Of the first means: with variances of softplus(0), log(2) / 2.5, -KL is some 30 times a cosine, which is about the
temperature that sentence models are trained at."""

RIDGE = 1e-2
"""Of the first projection, as a share of the mean variance of a state's dimensions."""

TOKENISED = 10_000
"""Texts whose tokens are Python's integers at a time: these take ten times as much memory."""

RESULTS_FILE = "train_results.json"
"""What a checkpoint was trained on, how, and what it has reached: for people. No part of its fingerprint."""

OTHERS = (*FOLDERS.values(), "pooler.pt", MODULES_FILE)
"""Files and folders of other models: with them, the checkpoint beside them would be read as another."""


class Tokens(NamedTuple):
    """Tokens of texts, ids (n, longest) int32 on the device, and how many of them each text has, (n,) int64."""

    ids: Tensor
    lengths: Tensor

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (b, t) and the attention mask (b, t) of some texts, on the device."""
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        mask = torch.arange(longest) < lengths[:, None]
        return self.ids[rows.to(self.ids.device), :longest].long(), mask.long().to(self.ids.device)


class MrlModule(nn.Module):
    """Makes Gaussians of tokens; queries and documents have one model."""

    def __init__(self, base: Path, config: MrlConfig, k: int, device: torch.device) -> None:
        """Of a transformer's folder. Raises ModelError where it holds none, or one of fewer dimensions than k."""
        super().__init__()
        self._config, self.device = config, device
        self._pools_first = _pools_first(base)
        self.tokenizer, self.transformer = _load(base)
        width = int(self.transformer.config.hidden_size)
        if k > width:
            raise ModelError(f"{base}: its hidden states are of {width} dimensions; Gaussians of them have no {k}")
        self.projection_mean = nn.Linear(width, k, bias=False)
        self.projection_var = nn.Sequential(nn.Linear(width, k, bias=False), nn.Softplus(beta=config.beta))
        # All variances are the same at first: softplus(0).
        nn.init.zeros_(self.projection_var[0].weight)  # type: ignore[arg-type]
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.to(device)

    def tokens(self, texts: Sequence[str], role: Role) -> Tokens:
        """As index.text.mrl reads texts, all of them."""
        most = self._config.query_tokens if role is Role.QUERY else self._config.document_tokens
        most = min(most, self.tokenizer.model_max_length)
        counts: list[int] = []
        parts: list[Tensor] = []
        for start in range(0, len(texts), TOKENISED):
            found: list[list[int]] = self.tokenizer(
                [f"{VARIANCE_TOKEN} {text}" for text in readable(texts[start : start + TOKENISED], most)],
                truncation=True,
                max_length=most,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            counts.extend(map(len, found))
            parts.append(torch.tensor(list(itertools.chain.from_iterable(found)), dtype=torch.int32))
        lengths = torch.tensor(counts)
        is_token = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.full(is_token.shape, self.tokenizer.pad_token_id, dtype=torch.int32)
        ids[is_token] = torch.cat(parts)
        return Tokens(ids.to(self.device), lengths)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (b, k), float32, of tokens (b, t)."""
        hidden = self._hidden(ids, mask)
        return self.projection_mean(hidden[:, 0]), self.projection_var(hidden[:, 1]).clamp(min=LEAST_VARIANCE)

    def gaussians(self, tokens: Tokens, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (n, k) of the texts of rows (n,)."""
        order = tokens.lengths[rows].argsort(descending=True, stable=True)
        made = [self(*tokens.of(some)) for some in torch.split(rows[order], TOGETHER[self.device.type])]
        back = order.argsort().to(self.device)
        mean, variance = (torch.cat(parts)[back] for parts in zip(*made, strict=True))
        return mean, variance

    @torch.no_grad()
    def begin(self, tokens: Tokens, rows: Tensor) -> None:
        """Sets the first projection of means by documents, of rows (n,).

        A sentence model is trained for the mean of its tokens' states, and [CLS] tells less. What it tells of the
        principal components of these means is found by least squares. Where the base's pooling is that of [CLS] alone,
        they are those of [CLS].
        """
        self.eval()
        order = tokens.lengths[rows].argsort()
        states: list[Tensor] = []
        pooled: list[Tensor] = []
        for some in torch.split(rows[order], TOGETHER[self.device.type]):
            ids, mask = tokens.of(some)
            hidden, counted = self._hidden(ids, mask), mask.clone()
            counted[:, 1] = 0  # [VAR] says nothing yet
            if self._pools_first:
                counted[:, 1:] = 0
            states.append(hidden[:, 0])
            pooled.append(normalize((hidden * counted[:, :, None]).sum(1), dim=1))
        # A shift of all means is none to KL.
        first, target = (part - part.mean(0) for part in (torch.cat(states).double(), torch.cat(pooled).double()))
        # eigh's order is from the smallest.
        basis = torch.linalg.eigh(target.T @ target).eigenvectors[:, -len(self.projection_mean.weight) :]
        gram = first.T @ first
        gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        self.projection_mean.weight.copy_(FIRST_LENGTH * torch.linalg.solve(gram, first.T @ target @ basis).T)

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The last hidden states (b, t, d), float32; CUDA devices compute them in bfloat16."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            hidden: Tensor = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden.float()

    def save(self, folder: Path, results: Mapping[str, object]) -> None:
        """Writes the checkpoint, and `results` beside it; the one before remains until all is on disk.

        Raises ModelError or OSError where it cannot be written.
        """
        settings = json.dumps(self._config.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
        # Without the means it is no checkpoint; with them alone, it would be one of the default settings.
        marks = {CONFIG_FILE: settings.encode(), MEAN_FILE: _state(self.projection_mean)}
        with whole_model(folder, marks) as partial:
            with broken(f"{folder}: transformers cannot write there"), no_bars():
                self.transformer.save_pretrained(partial)
                self.tokenizer.save_pretrained(partial)
            for path in partial.glob("*.safetensors"):
                path.chmod((partial / "config.json").stat().st_mode)  # safetensors lets nobody else read it
            (partial / VARIANCE_FILE).write_bytes(_state(self.projection_var))
            (partial / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")


def require_room(folder: Path) -> None:
    """Raises ModelError where a folder holds parts of another model, with which a checkpoint would not be read, or
    cannot be written to."""
    for name in OTHERS:
        if (folder / name).exists():
            raise ModelError(f"{folder}: {name} of another model is there; name another folder, or remove it")
    refuse_adapter(folder)
    require_writable(folder)


def _state(module: nn.Module) -> bytes:
    """A state dict, as torch.save has it."""
    file = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in module.state_dict().items()}, file)
    return file.getvalue()


def _pools_first(base: Path) -> bool:
    """Whether a sentence-transformers model makes the state of [CLS] alone its embedding."""
    with broken(f"{base}: its pooling cannot be read"):
        if not (base / MODULES_FILE).exists():
            return False
        for module in json.loads((base / MODULES_FILE).read_bytes()):
            path = base / module["path"] / "config.json"
            if module["type"].endswith(".Pooling") and path.exists():
                pooling = json.loads(path.read_bytes())
                # Older models have a switch for each way to pool.
                switched = {name for name, is_on in pooling.items() if name.startswith("pooling_mode_") and is_on}
                found: bool = pooling.get("pooling_mode", switched) in ("cls", ["cls"], {"pooling_mode_cls_token"})
                return found
    return False


def _load(base: Path) -> tuple[Any, Any]:
    """The tokenizer and the transformer of a folder, in float32, who know [VAR]. Nothing is fetched, no code is run."""
    from transformers import AddedToken, AutoModel, AutoTokenizer

    refuse_adapter(base)
    what = f"{base}: transformers cannot load it"
    options = {"local_files_only": True, "trust_remote_code": False}
    with broken(what):
        tokenizer: Any = AutoTokenizer.from_pretrained(base, **options)
        with no_bars(), every_weight(what):
            transformer: Any = AutoModel.from_pretrained(base, **options).float()
        detach_from_files(transformer)
        if tokenizer.add_tokens([AddedToken(VARIANCE_TOKEN, special=True)], special_tokens=True):
            # In the middle of the others it asks for nothing, and nothing asks for it, until it has been trained.
            mean = transformer.get_input_embeddings().weight.detach().mean(0)
            if len(tokenizer) > len(transformer.get_input_embeddings().weight):
                transformer.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            place = tokenizer.convert_tokens_to_ids(VARIANCE_TOKEN)
            transformer.get_input_embeddings().weight.data[place] = mean
    return tokenizer, transformer
