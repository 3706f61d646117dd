"""What files of Gaussians say of these: which model made them, and of texts in which role."""

from collections.abc import Sequence
from pathlib import Path

from index.errors import SourceError
from index.formats import model_of, role_of
from index.records import ModelRecord
from index.text.protocol import Role

__all__ = ["labelled_model", "require_role"]


def labelled_model(files: Sequence[Path]) -> ModelRecord | None:
    """The model that all the files say to be that of their Gaussians; None where none of them says of any.

    Raises SourceError where they do not say the same.
    """
    found = {file: model_of(file) for file in files}
    known = [(file, record) for file, record in found.items() if record is not None]
    if not known:
        return None
    one, first = known[0]
    for other, second in known:
        if second.fingerprint != first.fingerprint:
            raise SourceError(
                f"{one} has Gaussians of {first.name!r}, and {other} of another model, {second.name!r}: what one makes "
                "says nothing to the other; build an index of each"
            )
    silent = next((file for file, record in found.items() if record is None), None)
    if silent is not None:
        raise SourceError(
            f"{one} has Gaussians of {first.name!r}, and {silent} does not say of which model its are, so that it "
            "cannot be said of both: make them with gaussearch encode, too, or keep them apart"
        )
    return first


def require_role(files: Sequence[Path], role: Role) -> None:
    """Raises SourceError where a file says that its Gaussians were made of texts for another role."""
    for file in files:
        made_for = role_of(file)
        if made_for is not None and made_for is not role:
            kinds = {Role.QUERY: "queries", Role.DOCUMENT: "documents"}
            raise SourceError(f"{file}: these are Gaussians of {kinds[made_for]}: encode them with --role {role.value}")
