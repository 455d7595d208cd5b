"""What a process of the comparison does: one part, or the report. `equipoise-engine reproduce` starts it."""

from __future__ import annotations

import argparse
import sys

from equipoise_engine.errors import EquipoiseError
from equipoise_engine.reproduce.command import REPORT, add_arguments, comparison
from equipoise_engine.reproduce.part import run_part
from equipoise_engine.reproduce.report import write_report


def main() -> int:
    """Run the part that the arguments name and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m equipoise_engine.reproduce")
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.part is None:
        parser.error("no --part is given; `equipoise-engine reproduce` runs all of them")

    def say(line: str) -> None:
        # one write a line, so that the lines of parts that run together do not mix
        sys.stderr.write(f"{arguments.part}-{arguments.seed}: {line}\n")
        sys.stderr.flush()

    try:
        wanted = comparison(arguments)
        if arguments.part == REPORT:
            write_report(wanted)
        else:
            run_part(wanted.part(arguments.part, arguments.seed), wanted.out / "parts", say)
    except EquipoiseError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
