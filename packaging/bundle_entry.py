"""Start of the bundle: the window, or with `--engine` first the engine, so that one program holds both."""

from __future__ import annotations

import multiprocessing
import sys


def start() -> int:
    """Run the part that the arguments ask for and return its exit status."""
    # each part imports much that the other does not need: torch here, Qt there
    if sys.argv[1:2] == ["--engine"]:
        del sys.argv[1]
        from equipoise_engine.__main__ import main
    else:
        from equipoise.__main__ import main
    return main() or 0


if __name__ == "__main__":
    multiprocessing.freeze_support()
    sys.exit(start())
