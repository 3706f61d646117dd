"""Where commands print what people read."""

from typing import TextIO

from rich.console import Console

__all__ = ["PlainConsole"]


class PlainConsole(Console):
    """Prints text as it is: "[1]" and ":tent:" are no markup. A reader that has gone raises BrokenPipeError."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(file=stream, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raises what rich would turn into an exit with status 1."""
        raise BrokenPipeError
