"""Loading without the bars that transformers draws: a service logs, and a command has a bar of its own."""

import contextlib
from collections.abc import Iterator

__all__ = ["no_bars"]


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Draws none inside. Raises ImportError where transformers is not installed."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
