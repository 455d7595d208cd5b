"""Numbered image files: their order, what is missing among them, and their images as one array."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Samples
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.frames import Frames
from equipoise_engine.formats.stacks.tiffstack import images_of_tiff

_NUMBER = re.compile(r"(\d+)")
MAX_NAMED = 3
"""Missing files that are named one by one."""


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return what sorts names as people do: a2 before a10."""
    parts = _NUMBER.split(name.lower())
    return tuple((1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts)


def images_of(files: Sequence[Path], opened: Callable[[Path], Samples] = images_of_tiff) -> Samples:
    """Return the images in files, one after another `(image, row, column)`; files are opened when they are asked for.

    Parameters
    ----------
    files
        In their order; at least one.
    opened
        Returns the images of one of them.

    Raises
    ------
    BadInput
        A file is damaged, or its images differ from those of the first.
    """
    first = opened(files[0])
    if len(files) == 1:
        return first
    shape, kind = tuple(int(n) for n in first.shape[1:]), first.dtype.newbyteorder("=")
    counts = [int(first.shape[0])]
    for file in files[1:]:
        images = opened(file)
        other = tuple(int(n) for n in images.shape[1:])
        if other != shape or images.dtype.newbyteorder("=") != kind:
            raise BadInput(
                f"{file.name}: an image of {other[0]} x {other[1]} and type {images.dtype} among images of {shape[0]} x"
                f" {shape[1]} and type {kind}, as {files[0].name} is",
                "Keep images of one size and type together, or tell which files have which role.",
            )
        counts.append(int(images.shape[0]))
    ends = np.cumsum(counts)
    # Those read last: several images may come from one file. The others are not kept open, as there may be thousands.
    kept: list[tuple[int, Samples]] = []

    def load(index: int) -> NDArray[Any]:
        number = int(np.searchsorted(ends, index, side="right"))
        if not kept or kept[0][0] != number:
            kept[:] = [(number, opened(files[number]))]
        return np.asarray(kept[0][1][index - int(ends[number]) + counts[number]])

    return Frames(load, (int(ends[-1]), shape[0], shape[1]), kind)


def gaps(files: Sequence[Path]) -> tuple[tuple[int, ...], str]:
    """Return the places in the numbering of files that are missing, and a sentence that names them, empty without any.

    Parameters
    ----------
    files
        In their order; names that differ in anything but one number have no numbering.
    """
    runs = [_NUMBER.findall(file.stem) for file in files]
    if len(files) < 3 or len({len(run) for run in runs}) != 1:
        return (), ""
    changing = [column for column in zip(*runs, strict=True) if len(set(column)) > 1]
    if len(changing) != 1:
        return (), ""
    numbers = [int(text) for text in changing[0]]
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    step = min(steps)
    if step <= 0 or any(n % step for n in steps) or steps.count(step) < len(steps) / 2:
        return (), ""
    missing: list[int] = []
    said: list[str] = []
    for place in range(len(steps)):
        lost = [(number - numbers[0]) // step for number in range(numbers[place] + step, numbers[place + 1], step)]
        missing += lost
        if lost and len(said) < MAX_NAMED:
            which = f"image {lost[0]} is" if len(lost) == 1 else f"images {lost[0]} to {lost[-1]} are"
            said.append(f"{which} missing: {files[place].stem} is followed by {files[place + 1].stem}")
        if len(missing) > 1 << 20:
            return (), ""  # these numbers do not count images
    return tuple(missing), "; ".join(said) + ("; and others" if missing and len(said) == MAX_NAMED else "")
