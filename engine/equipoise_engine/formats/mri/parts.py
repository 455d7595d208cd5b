"""Parts of an MRI scan that is repeated, like echoes and repetitions: which one is read, and what is said of others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from equipoise_engine.errors import BadInput
from equipoise_engine.recipe import Source

MAX_SOURCES = 64
"""Parts of a scan that are named for a choice of others."""
MAX_LISTED = 12
"""Of these, and of scans, as many are named in a message."""
_PART = re.compile(r"([a-z][a-z ]*?)\s*(\d{1,9})")
_PLURALS = {"echo": "echoes", "index a": "indices a"}


def chosen_part(
    source: str, counters: Mapping[str, Iterable[int]], path: Path, scans: Sequence[str] = ()
) -> dict[str, int]:
    """Return which value of each counter is read: the first, or what a source like "repetition 2, echo 1" says.

    Parameters
    ----------
    counters
        The values that each counter takes, from 0; a source counts from 1.
    scans
        Names of the scans of a file with several, which a source may tell as well.

    Raises
    ------
    BadInput
        The scan has no such part.
    """
    values = {name: sorted(set(found)) for name, found in counters.items()}
    chosen = {name: found[0] for name, found in values.items() if found}
    for part in filter(None, (text.strip() for text in source.lower().split(","))):
        told = _PART.fullmatch(part)
        name, number = (told[1], int(told[2]) - 1) if told is not None else (part, -1)
        if number not in values.get(name, []):
            there = [f"{name} {n + 1}" for name, n in _choices(values)]
            said = f"Its parts are: {_listed(there) or 'one only'}."
            if scans:
                said += f" The scans of the file are: {_listed(scans)}."
            raise BadInput(f"{path.name}: the scan has no part {part!r}", said)
        chosen[name] = number
    return chosen


def noise_wanted(told: Mapping[str, str], path: Path) -> bool:
    """Return whether the noise of a scan is to be read: unless the user tells that there is none.

    Raises BadInput where a source is told: readouts of noise are marked in the file.
    """
    source = told.get("noise")
    if source:
        raise BadInput(
            f"{path.name}: {source!r} cannot be told as the noise: its readouts are marked in the file",
            "Leave it out, or tell an empty source where there is none.",
        )
    return source is None


def parts(counters: Mapping[str, Iterable[int]], shape: tuple[int, ...]) -> tuple[Source, ...]:
    """Return the parts of a scan that may be read in place of the first."""
    values = {name: sorted(set(found)) for name, found in counters.items()}
    return tuple(Source(f"{name} {n + 1}", shape, "k-space") for name, n in _choices(values)[:MAX_SOURCES])


def part_warnings(counters: Mapping[str, Iterable[int]], chosen: Mapping[str, int]) -> list[str]:
    """Return how many parts the scan has besides the one that is read."""
    warnings = []
    for name, found in counters.items():
        values = sorted(set(found))
        if len(values) > 1:
            which = "the first" if chosen[name] == values[0] else f"number {chosen[name] + 1}"
            several = _PLURALS.get(name, name + ("es" if name.endswith("s") else "s"))
            warnings.append(f"The scan has {len(values)} {several}; {which} is read.")
    return warnings


def _choices(values: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    return [(name, number) for name, found in values.items() if len(found) > 1 for number in found]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
