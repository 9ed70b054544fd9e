"""The command line, `loradock`.

`main` is the console script: it builds the commands (`app`), runs one, and turns every error into one line and an exit
code: 0 done, 1 failed, 2 a broken argument or setting, 130 interrupted. Commands that talk to a server use `client`,
print through `output`, and import what is slow only when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that `arguments` (default: the process's) name, and exit."""
    import sys

    from serving.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


__all__ = ["main"]
