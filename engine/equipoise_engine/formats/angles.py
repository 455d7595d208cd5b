"""Projection angles: units, and what a scan's set of angles cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.recipe import AngleRange

LARGEST_TEXT = 1 << 24
"""Bytes of a text file of angles; a million angles take less."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$")
_COMMENT = re.compile(r"[#%;!]|//")


def evenly(covered: AngleRange, views: int) -> NDArray[np.float64]:
    """Return the angles of so many views over a range, in degrees `(view,)`, float64."""
    return np.linspace(covered.start_deg, covered.stop_deg, views, endpoint=covered.inclusive, dtype=np.float64)


def angles_of_text(path: Path) -> NDArray[np.float64]:
    """Return the angles in a text file as it has them `(angle,)`, float64; it does not say their unit.

    A line holds one angle, or several columns apart by blanks, commas or semicolons, of which one is taken: columns
    that are not numbers, stay the same or only count the lines are left out. Lines that begin with `#`, `%`, `;`, `!`
    or `//`, and words before the first line of numbers, are skipped.

    Raises
    ------
    BadInput
        The file is missing, too large or not text, a line has no number or another number of columns than the first,
        or several columns may be the angles.
    """
    rows: list[list[str]] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        text = line.strip()
        if not text or _COMMENT.match(text):
            continue
        words = [word for word in re.split(r"[\s,;]+", text) if word]
        if not any(_NUMBER.match(word) for word in words):
            if not rows:
                continue  # a heading
            raise BadInput(f"{path.name}: line {number} is {text[:40]!r}, not an angle", "Correct the file of angles.")
        if rows and len(words) != len(rows[0]):
            raise BadInput(
                f"{path.name}: line {number} has {len(words)} columns, the lines before it {len(rows[0])}",
                "Correct the file of angles.",
            )
        rows.append(words)
    if not rows:
        raise BadInput(f"{path.name}: holds no angles", "A file of angles has one number in each line.")
    return _column(path, rows)


def _text(path: Path) -> str:
    """Return what stands in a small text file."""
    try:
        if not path.is_file():
            raise BadInput(f"{path}: there is no such file of angles", "Check its name and folder.")
        size = path.stat().st_size
        if size > LARGEST_TEXT:
            raise BadInput(f"{path.name}: {size} bytes are no list of angles; at most {LARGEST_TEXT} are read")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: the file of angles cannot be read ({error})") from error
    try:
        if b"\0" in raw:
            raise ValueError("it holds zero bytes")
        return raw.decode("utf-8-sig")
    except ValueError as error:
        raise BadInput(f"{path.name}: is not a text file of angles ({error})") from error


def _column(path: Path, rows: list[list[str]]) -> NDArray[np.float64]:
    """Return the one column that may be angles."""
    numbers = [
        np.array([float(word) for word in column], dtype=np.float64)
        for column in zip(*rows, strict=True)
        if all(_NUMBER.match(word) for word in column)
    ]
    if not numbers:
        raise BadInput(f"{path.name}: has no column that is a number in each of its {len(rows)} lines")
    count = np.arange(len(rows))
    varying = [column for column in numbers if np.ptp(column) > 0] or numbers[-1:]
    angles = [c for c in varying if not (np.array_equal(c, count) or np.array_equal(c, count + 1))] or varying[-1:]
    if len(angles) > 1:
        raise BadInput(
            f"{path.name}: {len(angles)} of its {len(rows[0])} columns may be the angles",
            "Keep the column of angles only.",
        )
    return angles[0]


def to_radians(
    values: NDArray[np.float64], units: str, *, where: str
) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
    """Return angles in radians, how they were understood, and warnings.

    Parameters
    ----------
    values
        Angles as stored, `(view,)`, float64.
    units
        Units as stored; empty where the file does not say.
    where
        File and dataset, for messages.

    Raises
    ------
    BadInput
        An angle is not finite, all are equal, or the units are unknown.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise BadInput(
            f"{where}: {bad.size} of {values.size} angles are not finite;"
            f" the first is index {bad[0]} ({values[bad[0]]})",
            "Correct the angles in the file.",
        )
    span = float(np.ptp(values)) if values.size else 0.0
    if span == 0.0:
        raise BadInput(
            f"{where}: all {values.size} angles are {values[:1]}, a span of zero",
            "A reconstruction needs projections from several angles; check which dataset holds them.",
        )
    word = units.lower()
    warnings: list[str] = []
    if word.startswith("rad"):
        radians, reading = values, "radians, as its units say"
    elif word.startswith(("mrad", "millirad")):
        radians, reading = values * 1e-3, "milliradians, as its units say"
    elif word.startswith("deg") or word in ("°", "d"):
        radians, reading = np.deg2rad(values), "degrees, as its units say"
    elif word:
        raise BadInput(
            f"{where}: angles in unknown units {units!r}; degrees and radians are read",
            "Correct the units attribute in the file.",
        )
    elif values.size >= 20 and _near_half_turns(span * values.size / (values.size - 1)):
        radians, reading = (
            values,
            f"radians: no units, but the span of {span:.4g} is a half or full turn in radians",
        )
        warnings.append(
            f"The angles carry no units; their span of {span:.4g} is a half or full turn in radians,"
            " so radians were taken."
        )
    else:
        radians, reading = np.deg2rad(values), "degrees: no units given, and degrees are usual"
    reach = float(np.ptp(radians))
    if reach < np.deg2rad(150.0):
        warnings.append(
            f"The angles span {np.rad2deg(reach):.1f} degrees only; below 180 degrees,"
            " edges along the missing directions cannot be recovered."
        )
    return np.ascontiguousarray(radians, dtype=np.float64), reading, tuple(warnings)


def _near_half_turns(span: float) -> bool:
    """Whether a span, with one step added, is one or two half turns in radians."""
    return any(abs(span / (n * np.pi) - 1.0) < 0.02 for n in (1, 2))


def repeated_views(angle_rad: NDArray[np.float64]) -> tuple[str, ...]:
    """Return a warning where the last view repeats the first, directly or mirrored.

    Parameters
    ----------
    angle_rad
        `(view,)`, float64.
    """
    if angle_rad.size < 3:
        return ()
    reach = abs(float(angle_rad[-1] - angle_rad[0]))
    step = float(np.median(np.abs(np.diff(angle_rad))))
    for turns, kind in ((1, "mirrored"), (2, "as it is")):
        if step > 0 and abs(reach - turns * np.pi) < 0.05 * step:
            return (
                f"The last view, {np.rad2deg(reach):.1f} degrees after the first, repeats it {kind};"
                " it counts double unless the views are weighted.",
            )
    return ()
