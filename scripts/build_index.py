#!/usr/bin/env python3
"""The batch build as a script, for schedulers that run files: the same as `gaussearch build`."""

import typer

from service.cli import build

if __name__ == "__main__":
    typer.run(build)
