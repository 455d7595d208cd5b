"""Which axis of k-space in a MATLAB file is which: as the user tells, else by the sizes of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.mat_variables import Variable
from equipoise_engine.preprocess.kspace import to_image

MAX_COILS = 128
PEAKED = 10.0
"""How much more energy than in the median position lies in the middle of an axis that is still encoded."""
AXES = ("ky", "kx", "kz", "slice", "coil")
"""Names of axes; along kz, slices are still encoded."""


def told_axes(source: str) -> tuple[str, tuple[str, ...] | None]:
    """Return the variable and the axes in a source like "kspace@ky,kx,coil,slice"; None where it tells no axes.

    Raises
    ------
    BadInput
        The axes are no names of different axes with ky and kx among them.
    """
    name, mark, text = source.partition("@")
    if not mark:
        return source.strip(), None
    axes = tuple(word.strip().lower() for word in text.split(","))
    names = set(axes)
    if len(names) < len(axes) or not {"ky", "kx"} <= names <= set(AXES) or {"kz", "slice"} <= names:
        raise BadInput(
            f"{source}: {text or 'nothing'} tells no axes of k-space",
            f"Axes are {', '.join(AXES)}, each once, and kz or slice: kspace@ky,kx,coil,slice.",
        )
    return name.strip(), axes


def likely_axes(
    path: Path, data: Variable, kspace: NDArray[np.complex64], coils: Collection[int]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the axes of k-space by their sizes, and what was guessed.

    Parameters
    ----------
    coils
        How many coils there are, as other variables of the file tell.

    Raises
    ------
    BadInput
        No axis is short enough for coils.
    """
    shape = kspace.shape
    if len(shape) == 2:
        return ("ky", "kx"), []
    if len(shape) == 3:
        if shape[2] <= MAX_COILS and shape[2] < min(shape[:2]):
            return ("ky", "kx", "coil"), []
        if shape[0] <= MAX_COILS and shape[0] < min(shape[1:]):
            return ("coil", "ky", "kx"), []
        raise BadInput(
            f"{path.name}: {data.name} has shape {shape}; the last axis, the coils, must be the shortest and at most"
            f" {MAX_COILS}",
            f"Order the axes as (ky, kx, coil), or tell them: {data.name}@kx,ky,coil.",
        )
    third, last = shape[2], shape[3]
    if min(third, last) > MAX_COILS:
        raise BadInput(
            f"{path.name}: {data.name} has shape {shape}; one of the last two axes, the coils, may be {MAX_COILS} at"
            " most",
            "Order the axes as (ky, kx, slice, coil).",
        )
    if last > MAX_COILS or (third in coils and last not in coils):
        return ("ky", "kx", "coil", "slice"), []
    # The middle of an axis that is still encoded holds nearly all of the signal.
    energy = np.sum(np.abs(kspace) ** 2, axis=(0, 1, 3))
    if third > 2 and float(energy[third // 2]) > PEAKED * max(float(np.median(energy)), 1e-30):
        note = "Its third axis was taken for a second phase encoding, as the signal lies in its middle."
        return ("ky", "kx", "kz", "coil"), [note]
    certain = third == 1 or third > MAX_COILS or (last in coils and third not in coils)
    note = (
        "Its third axis was taken for slices and its last one for coils; if they are the other way, tell the source of"
        f" the k-space as {data.name}@ky,kx,coil,slice."
    )
    return ("ky", "kx", "slice", "coil"), [] if certain else [note]


def ordered(path: Path, data: Variable, kspace: NDArray[np.complex64], axes: tuple[str, ...]) -> NDArray[np.complex64]:
    """Return k-space `(slice, coil, ky, kx)` of an array with these axes, transformed along kz where it has it.

    Raises
    ------
    BadInput
        The array has another number of axes, or more coils than are read.
    """
    if len(axes) != kspace.ndim:
        told = ", ".join(axes)
        raise BadInput(f"{path.name}: {data.name} has the shape {kspace.shape}; told are ({told})")
    across = "kz" if "kz" in axes else "slice"
    names = [*axes, *(name for name in (across, "coil") if name not in axes)]
    whole = kspace.reshape(kspace.shape + (1,) * (len(names) - len(axes)))
    stack = np.ascontiguousarray(whole.transpose([names.index(name) for name in (across, "coil", "ky", "kx")]))
    if stack.shape[1] > MAX_COILS:
        raise BadInput(f"{path.name}: {data.name} would have {stack.shape[1]} coils; at most {MAX_COILS} are read")
    if across == "kz":
        for coil in range(stack.shape[1]):
            stack[:, coil] = to_image(stack[:, coil], (0,))
    return stack
