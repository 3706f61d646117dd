"""The option --ray, whose value may be left out."""

import contextlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from index.build_work import BuildPlace
from service.settings import ENV_PREFIX

__all__ = ["RayCommand", "RayGpusOption", "RayOption", "RayTasksOption", "on_ray"]

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


RayTasksOption = Annotated[
    int | None,
    typer.Option(
        "--ray-tasks",
        min=1,
        envvar=f"{ENV_PREFIX}RAY_TASKS",
        help="With --ray: tasks at a time, of one core each; as many as the cluster has cores for if not set.",
        show_default=False,
    ),
]
RayGpusOption = Annotated[
    float,
    typer.Option(
        "--ray-gpus",
        min=0.0,
        max=1.0,
        envvar=f"{ENV_PREFIX}RAY_GPUS",
        help="With --ray: GPUs of a task that encodes, or the share of one, where the cluster has any.",
    ),
]


def on_ray(address: str | None, tasks: int | None, gpus: float) -> contextlib.AbstractContextManager[BuildPlace | None]:
    """Where a build is made, on the cluster that these options mean; None, in this process, without --ray."""
    if address is None:
        return contextlib.nullcontext()
    # A build in this process has no need of it.
    from index.distributed.ray_place import RayOptions, ray_place

    return ray_place(RayOptions(address=address, tasks=tasks, gpus=gpus))


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
