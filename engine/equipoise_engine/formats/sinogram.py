"""Reader for a sinogram in a TIFF file: one image whose rows are the views of a parallel beam.

Such a file holds no angles. Whether they cover half a turn or a full one, and whether the last view repeats the first,
is found from the views: half a turn later a parallel beam sees the mirror image.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import tifffile
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, Match
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.angles import repeated_views, to_radians
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.state import state_without_flats
from equipoise_engine.geometry import ParallelBeam

MIN_VIEWS = 8
MAX_STEPS = 12
"""Steps between views at the ends that tell whether the last one repeats the first."""
ALIKE = 1.5
"""How many times as much as views a few steps apart mirrored views may differ."""
MAX_PAIRS = 64
"""Pairs of views half the scan apart that are looked at."""
FINER = 8
"""Parts of a column that views are moved by."""
REPEATED = ", and the last repeats the first"
_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# Whatever the library says of a damaged file.
_DAMAGE = (
    AttributeError,
    AssertionError,
    ImportError,
    IndexError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)


LARGEST_SPAN_DEG = 36000.0
"""Largest range of angles."""


@dataclass(frozen=True)
class AngleRange:
    """Evenly spaced projection angles.

    Parameters
    ----------
    start_deg, stop_deg
        First angle and end of the range, counter-clockwise.
    inclusive
        Whether the last view lies at the end; otherwise one step before it.

    Raises
    ------
    BadInput
        The range has more than a hundred turns.
    """

    start_deg: float
    stop_deg: float
    inclusive: bool = False

    def __post_init__(self) -> None:
        span = abs(self.stop_deg - self.start_deg)
        if span > LARGEST_SPAN_DEG:
            raise BadInput(
                f"angles from {self.start_deg:g} to {self.stop_deg:g} degrees span more than {LARGEST_SPAN_DEG:g}"
            )

    def angles_deg(self, views: int) -> NDArray[np.float64]:
        """Return the angles of so many views `(view,)`, float64."""
        return np.linspace(self.start_deg, self.stop_deg, views, endpoint=self.inclusive, dtype=np.float64)


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF or BigTIFF files do."""
    with path.open("rb") as stream:
        return stream.read(4) in _STARTS


def read_sinogram(path: Path, centre_px: float | None = None, *, angles: AngleRange | None = None) -> CtAcquisition:
    """Return the sinogram in a TIFF file of one grey image; values without compression are read when needed.

    Parameters
    ----------
    centre_px
        Detector column of the rotation axis, where it is known.
    angles
        The range that the views cover; found from them where it is None.

    Raises
    ------
    BadInput
        The file is damaged, the image is too small for a sinogram, or the angles cannot be.
    Unsupported
        It is a stack, a colour image or a result of this program.
    OutOfMemory
        The image is larger than the free memory.
    """
    image = _image(path)
    views, columns = image.shape
    projections = image[:, None, :]
    matched = [Match("projections", "the image", (views, columns), "rows are views, columns are detector elements")]
    warnings = [
        f"A TIFF file does not say that it is a sinogram: its {views} rows were taken as the views of a parallel beam."
    ]
    if angles is None:
        covered, reason, sure = find_range(np.asarray(image, dtype=np.float64))
        hint = "" if sure else " This is a guess."
        warnings.append(
            f"The file holds no angles; {covered.start_deg:g} to {covered.stop_deg:g} degrees"
            f" {'with' if covered.inclusive else 'without'} the end were taken: {reason}.{hint} Give the angles if they"
            " are others."
        )
    else:
        covered, reason = angles, "as given"
    angle_rad, _, notes = to_radians(covered.angles_deg(views), "degrees", where=path.name)
    matched.append(Match("angles", "the views", (views,), reason))
    state, note = state_without_flats(projections, "", where=path.name)
    return CtAcquisition(
        path=path,
        format="TIFF sinogram",
        state=state,
        projections=projections,
        geometry=ParallelBeam(angle_rad=angle_rad, centre_px=centre_px),
        matched=tuple(matched),
        warnings=(*warnings, *notes, *repeated_views(angle_rad), note),
    )


def _image(path: Path) -> NDArray[Any]:
    """Return the only image of a file `(view, column)`."""
    try:
        with tifffile.TiffFile(path) as file:
            pages = len(file.pages)
            page: Any = file.pages[0]
            shape, kind = tuple(int(n) for n in page.shape), page.dtype
            if any('"program": "Equipoise"' in text for text in (page.description, str(file.imagej_metadata))):
                raise Unsupported(f"{path.name}: is an image that this program made, not a scan")
            if pages != 1 or (file.is_imagej and (file.imagej_metadata or {}).get("images", 1) != 1):
                raise Unsupported(
                    f"{path.name}: a TIFF stack of {max(pages, (file.imagej_metadata or {}).get('images', 1))} images;"
                    " single sinograms are read",
                    "Save one sinogram (rows are views) as a file of its own.",
                )
            if len(shape) != 2 or page.photometric not in (0, 1) or kind is None or kind.kind not in "iuf":
                raise Unsupported(
                    f"{path.name}: a TIFF image of shape {shape} and type {kind}; grey images of numbers are read"
                )
            if min(shape) < MIN_VIEWS or kind.itemsize < 1:
                raise BadInput(
                    f"{path.name}: an image of {shape[0]} x {shape[1]} is too small for a sinogram of at least"
                    f" {MIN_VIEWS} views and columns"
                )
            # Everything is read once to find the angles.
            check_memory(4 * shape[0] * shape[1] * 8, f"the image {shape} of {path.name}")
            if page.is_memmappable and not page.is_tiled and page.photometric == 1:
                mapped: NDArray[Any] = tifffile.memmap(path, mode="r")
                return mapped.reshape(shape)
            values: NDArray[Any] = np.asarray(page.asarray())
            return values
    except (*_DAMAGE, tifffile.TiffFileError) as error:
        if "imagecodecs" in str(error):
            raise Unsupported(
                f"{path.name}: the TIFF image is stored in a way that is not read ({error})",
                "Save it without compression, with 8, 16 or 32 bits.",
            ) from error
        raise BadInput(
            f"{path.name}: the TIFF file is damaged ({type(error).__name__}: {error})", "Copy or export it again."
        ) from error


def find_range(sinogram: NDArray[np.float64]) -> tuple[AngleRange, str, bool]:
    """Return the range of angles that the views cover, why, and whether the views show it.

    Parameters
    ----------
    sinogram
        `(view, column)`, float64.
    """
    views = sinogram.shape[0]
    edge = max(sinogram.shape[1] // 50, 1)
    background = np.nanmedian(np.concatenate([sinogram[:, :edge], sinogram[:, -edge:]], axis=1))
    rows = np.nan_to_num(sinogram - background, posinf=0.0, neginf=0.0)
    half = views // 2
    offsets = np.arange(half - 2, half + 3)
    across = [_across(rows, int(offset)) for offset in offsets]
    opposite = min(across)
    last = _difference(rows[:1], rows[-1:, ::-1])
    # What views differ by in a few steps is all that mirror images may differ by.
    ends = int(np.clip(views // 24, 2, MAX_STEPS))
    allowed = ALIKE * _difference(rows[:-ends], rows[ends:])
    if opposite < min(last, allowed):
        # The lowest point of a parabola through the differences is the number of views in half a turn.
        bend, slope, _ = np.polyfit(offsets - half, across, 2)
        turn = 2 * half - slope / bend if bend > 0 else views
        repeats = bool(abs(turn - (views - 1)) < abs(turn - views))
        reason = "half the views later the mirror image is seen, so they cover a full turn"
        return (AngleRange(0.0, 360.0, repeats), reason + (REPEATED if repeats else ""), True)
    if last < allowed:
        repeats = _repeats(rows, ends)
        reason = "the last view is the mirror image of the first, so they cover half a turn"
        return (AngleRange(0.0, 180.0, repeats), reason + (REPEATED if repeats else ""), True)
    return AngleRange(0.0, 180.0), "half a turn is usual, but no views are mirror images of each other", False


def _across(rows: NDArray[np.float64], offset: int) -> float:
    """Return what views differ by from the mirrored ones so many views later."""
    count = rows.shape[0] - offset
    pairs = np.unique(np.linspace(0, count - 1, min(count, MAX_PAIRS)).astype(int))
    return _difference(rows[pairs], rows[pairs + offset][:, ::-1])


def _repeats(rows: NDArray[np.float64], ends: int) -> bool:
    """Whether the last view of half a turn is the first one mirrored, or lies a step before it.

    Views k apart by their numbers across the seam are k steps apart where the last repeats the first, and k + 1 where
    it does not; what views near the seam differ by in so many steps tells which.
    """
    near = (rows[: 2 * ends], rows[-2 * ends :])
    steps = [0.0] + [
        float(np.mean([_difference(part[i][None], part[i + k][None]) for part in near for i in range(2 * ends - k)]))
        for k in range(1, ends + 2)
    ]
    repeating = following = 0.0
    for k in range(1, ends + 1):
        seam = np.mean([_difference(rows[k - i : k - i + 1], rows[-1 - i][None, ::-1]) for i in range(k + 1)])
        repeating += abs(float(seam - steps[k]))
        following += abs(float(seam - steps[k + 1]))
    return repeating < following


def _difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the mean square difference of views `(view, column)` from others, moved along as far as fits best."""
    columns = first.shape[1]
    size = int(scipy.fft.next_fast_len(2 * columns, real=True))
    product = (np.conj(scipy.fft.rfft(first, size)) * scipy.fft.rfft(second, size)).sum(axis=0)
    correlation = FINER * scipy.fft.irfft(product, FINER * size)
    energy = float((first**2).sum() + (second**2).sum())
    return max(energy - 2.0 * float(correlation.max()), 0.0) / first.size
