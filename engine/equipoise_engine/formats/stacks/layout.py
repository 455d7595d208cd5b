"""What an image of a stack is: a projection or a sinogram.

That follows from the data. The mass of an object is the same in every view of a slice, whereas it differs between
slices: along the views the sum of a row stays the same although its values change, along the slices it does not.

Source: Ludwig 1966, doi:10.1002/cpa.3160190207 (moments of projections).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Samples
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.frames import Turned
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.known import GIVEN
from equipoise_engine.formats.stacks.sinogram import MIN_VIEWS, find_range
from equipoise_engine.recipe import Known

__all__ = ["Clues", "Layout", "laid_out", "thinned"]

MAX_IMAGES = 48
MAX_LINES = 48
MAX_COLUMNS = 256
"""Largest numbers of images, rows and columns that tell what an image is."""
CLEAR = 3.0
"""How many times as steady the sums along the views must be as those along the slices to tell the two."""


@dataclass(frozen=True)
class Clues:
    """What tells what an image is.

    Parameters
    ----------
    images
        `(image, row, column)`.
    seen
        Some of their values, with the same axes, float64.
    flats
        Open-beam frames `(frame, row, column)`, where they are apart from the images.
    angles
        Number of angles, where it is known.
    """

    images: Samples
    seen: NDArray[np.float64]
    flats: Samples | None
    angles: int | None


@dataclass(frozen=True)
class Layout:
    """What an image is.

    Parameters
    ----------
    name
        "projections" or "sinograms".
    reason
        Why it was taken.
    sure
        Whether anything tells it.
    warning
        Why it may be wrong; empty where the layout is no guess.
    """

    name: str
    reason: str
    sure: bool = True
    warning: str = ""


def laid_out(clues: Clues, always: str, known: Known, name: str) -> tuple[Samples, Layout]:
    """Return the images as frames `(view, row, column)`, and what an image was taken as.

    Parameters
    ----------
    clues
        The images, and what tells what they are.
    always
        What an image is, where files of this kind always are so; else it is judged.
    known
        What the user tells.
    name
        File named in messages.

    Raises
    ------
    BadInput
        The user tells what cannot be, or there is one projection only.
    """
    if always and known.layout not in ("", always):
        raise BadInput(f"{name}: the images of such a scan are {always}, not {known.layout}")
    layout = Layout(always, "as files of this kind have them") if always else _judged(clues, known)
    images = clues.images
    if images.shape[0] == 1 and layout.name == "projections" and min(images.shape[1:]) > 1:
        raise BadInput(f"{name}: one projection is no scan", "A single image can be a sinogram: take that layout.")
    told = bool(known.layout or known.transposed)
    if images.shape[0] == 1 and clues.flats is None and not told:
        images, layout = _upright(clues, layout)
    doubted = _doubted(layout, clues.seen, bool(always) or told)
    return (Turned(images) if layout.name == "sinograms" else images), doubted


def thinned(images: Samples) -> NDArray[np.float64]:
    """Return some images, rows and columns, spread over all of them."""
    count, rows, columns = (int(n) for n in images.shape)
    step = (math.ceil(rows / MAX_LINES), math.ceil(columns / MAX_COLUMNS))
    chosen = np.unique(np.linspace(0, count - 1, min(count, MAX_IMAGES)).astype(int))
    parts = [np.asarray(images[int(i), :: step[0], :: step[1]], dtype=np.float64) for i in chosen]
    return np.stack(parts)


def _doubted(layout: Layout, seen: NDArray[np.float64], told: bool) -> Layout:
    """Return a layout with a warning where it is a guess, or where the values speak against it and nobody told it."""
    warning = layout.warning
    if not layout.sure:
        warning = (
            f"Whether an image is a projection or a sinogram was guessed: {layout.name}, as {layout.reason}. The images"
            " may be no views of an object at all, but slices of it."
        )
    elif not told and _lie_on_their_side(seen, layout.name):
        warning = (
            f"The images were taken as {layout.name}, as {layout.reason}; but their sums look rather as if their rows"
            " and columns were swapped. If so, tell that they are transposed."
        )
    return replace(layout, warning=warning)


def _judged(clues: Clues, known: Known) -> Layout:
    """Return what an image is, and why, from what the user tells, else from numbers, else from values."""
    images, flats, angles = clues.images, clues.flats, clues.angles
    count, rows, columns = (int(n) for n in images.shape)
    if known.layout:
        return Layout(known.layout, GIVEN)
    if count == 1:
        return Layout("sinograms", "there is one image, whose rows must be views")
    if rows == 1:
        return Layout("projections", "they have one row")
    if flats is not None and tuple(flats.shape[1:]) == (rows, columns):
        return Layout("projections", "open-beam frames have their size")
    if flats is not None and tuple(flats.shape[1:]) == (count, columns):
        return Layout("sinograms", "open-beam frames have as many rows as there are images")
    if angles is not None and (angles == count) != (angles == rows):
        return Layout("projections" if angles == count else "sinograms", f"there are {angles} angles")
    if (count < MIN_VIEWS) != (rows < MIN_VIEWS):
        few = "projections" if rows < MIN_VIEWS else "sinograms"
        return Layout(few, f"{min(count, rows)} views would be too few")
    along_images, along_rows = _unsteadiness(clues.seen)
    if along_images > 0 and along_rows > 0:
        sums = (
            f"sums over columns are {max(along_images, along_rows) / min(along_images, along_rows):.3g} times as steady"
        )
        if along_rows > CLEAR * along_images:
            return Layout("projections", f"{sums} from image to image as from row to row")
        if along_images > CLEAR * along_rows:
            return Layout("sinograms", f"{sums} from row to row as from image to image")
    turning = [_turns(images, index) for index in (True, False)]
    if turning[0] != turning[1]:
        name, where = ("projections", "images") if turning[0] else ("sinograms", "rows")
        return Layout(name, f"{where} half a turn apart are mirror images")
    return Layout("projections", "is usual and the values tell neither", sure=False)


def _upright(clues: Clues, layout: Layout) -> tuple[Samples, Layout]:
    """Return a single image with views as its rows, and its layout, with a warning where it was turned for that."""
    images, seen, angles = clues.images, clues.seen[0], clues.angles
    _, rows, columns = (int(n) for n in images.shape)
    as_rows, as_columns = _unsteadiness(seen[None])[1], _unsteadiness(seen.T[None])[1]
    if angles is not None and (angles == rows) != (angles == columns):
        why = f"there are {angles} angles" if angles == columns else ""
    else:
        clear = as_columns > 0 and as_rows > CLEAR * as_columns and min(seen.shape) >= MIN_VIEWS
        why = f"their sums are {as_rows / as_columns:.3g} times as steady as those of rows" if clear else ""
    if not why:
        return images, layout
    check_memory(2 * rows * columns * images.dtype.itemsize, f"an image of {rows} x {columns}")
    warning = (
        f"The {columns} columns of the image were taken as the views, as {why}. Tell the layout sinograms if its rows"
        " are."
    )
    turned = replace(layout, reason="there is one image, whose columns must be views", warning=warning)
    return np.ascontiguousarray(np.asarray(images[0]).T)[None], turned


def _lie_on_their_side(seen: NDArray[np.float64], layout: str) -> bool:
    """Whether images whose rows and columns are swapped are more likely than the layout that was taken.

    The sums over what would be their columns are then far steadier along the views.
    """
    if min(seen.shape) < MIN_VIEWS:
        return False
    taken = _unsteadiness(seen)[0 if layout == "projections" else 1]
    return CLEAR * min(_unsteadiness(seen.swapaxes(1, 2))) < taken


def _unsteadiness(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return how much sums over columns vary from image to image, and from row to row, in terms of their values.

    Values that change at random give 1; an object that turns gives less, as all of it is in every view; one that
    differs between slices gives more.
    """
    high = np.nanpercentile(values, 99)
    if high > 0 and np.nanpercentile(values, 1) > 0.0:
        # Lines through the object multiply the beam; which of the two it is hardly matters for attenuation.
        values = np.log(np.maximum(values, 1e-3 * high) / high)
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    return _variation(values, 0), _variation(values, 1)


def _variation(values: NDArray[np.float64], axis: int) -> float:
    total = float(values.sum(axis=2).var(axis=axis).mean())
    each = float(values.var(axis=axis).sum(axis=-1).mean())
    return total / each if each > 0 else 0.0


def _turns(images: Samples, projections: bool) -> bool:
    """Whether views are mirror images of each other, if images are projections, or if not."""
    count, rows, columns = (int(n) for n in images.shape)
    check_memory(4 * max(count, rows) * columns * 8, "one sinogram")
    values = np.asarray(images[:, rows // 2, :] if projections else images[count // 2], dtype=np.float64)
    return values.shape[0] >= MIN_VIEWS and find_range(values)[2]
