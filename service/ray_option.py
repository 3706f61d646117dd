"""The option --ray, whose value may be left out."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

__all__ = ["RayCommand", "RayOption"]

NAME: Final = "--ray"
ADDRESS: Final = re.compile(r"auto|local|ray://\S+|[^\s/]+:\d+")
"""What names a cluster. Anything else that comes after --ray is the command's next argument."""


RayOption = Annotated[
    str | None,
    typer.Option(
        NAME,
        metavar="[ADDRESS]",
        help="Work on a Ray cluster: that at ADDRESS (host:port, or auto for one that runs on this machine), else that "
        "of RAY_ADDRESS, else one started for this command alone.",
        show_default=False,
    ),
]
"""None where the option is not given, and empty where it is given without a value."""


class RayCommand(TyperCommand):
    """A command with a RayOption. Typer knows no options whose value may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer, with an empty value where there is none."""
        return super().parse_args(ctx, _with_value(args))


def _with_value(arguments: Sequence[str]) -> list[str]:
    """The same arguments with --ray= where --ray stands without an address."""
    written: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--":
            return [*written, *arguments[place:]]
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        bare = argument == NAME and not ADDRESS.fullmatch(following)
        written.append(f"{NAME}=" if bare else argument)
    return written
