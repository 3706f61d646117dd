"""What `gaussearch encode` reads: the texts of a source, or of ir_datasets, but nothing that it writes itself."""

from pathlib import Path

from index.build_options import EncodeOptions
from index.durable import checksum, sync
from index.errors import BuildError
from index.formats import model_of
from index.sources import Corpus, RejectedRows
from index.text.ir_dataset import PREFIX, export_texts
from index.text.rows import TextSource
from index.text.working import EXPORTED

__all__ = ["corpus_to_encode"]


def corpus_to_encode(
    source: str,
    output: Path,
    listed_to: Path,
    parts: Path,
    texts: TextSource,
    rejected: RejectedRows | None,
    options: EncodeOptions,
) -> Corpus:
    """The texts; what this command itself writes is no part of them. Raises BuildError where it would be written over
    them, or over each other."""
    listed, made = listed_to.resolve(), output.resolve()
    if listed == made or listed.is_relative_to(parts.resolve()):
        raise BuildError(f"{listed_to} is where the output is made; name another file for rejected rows")
    if source.startswith(PREFIX):
        return Corpus([_exported(source.removeprefix(PREFIX), parts, options)], rejected=rejected, texts=texts)
    # A list that the user has named may also be a file of texts, named by mistake.
    own = [output, parts] if options.rejected_to else [output, parts, listed_to]
    corpus = Corpus([source], rejected=rejected, texts=texts, apart_from=own)
    if listed in {file.resolve() for file in corpus.files}:
        raise BuildError(f"{listed_to} is one of the sources; name another file for rejected rows")
    if made in corpus.left_out and model_of(output) is None:
        raise BuildError(f"{output} is one of the sources; name another file for the output")
    return corpus


def _exported(name: str, parts: Path, options: EncodeOptions) -> Path:
    """The file into which a data set of ir_datasets has been written."""
    exported = parts / f"{checksum(f'{name} {options.role}'.encode())[:12]}-{EXPORTED}"
    if not exported.exists() or options.restart:
        beside = exported.with_name(f".{exported.name}")
        try:
            export_texts(name, options.role, beside)
            sync(beside)
            beside.replace(exported)
        finally:
            beside.unlink(missing_ok=True)
        sync(parts)
    return exported
