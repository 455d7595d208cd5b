"""What the views of a sinogram of a parallel beam tell of its angles.

Whether they cover half a turn or a full one, and whether the last view repeats the first, is found from the views: half
a turn later a parallel beam sees the mirror image.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from equipoise_engine.recipe import AngleRange

MIN_VIEWS = 8
MAX_STEPS = 12
"""Steps between views near each other that tell how much they change."""
SEAM_STEPS = 6
"""Steps across the ends, at most, that tell whether the last view repeats the first."""
CLEARLY = 4.0
"""How many times as badly as the other an assumption about the ends must fit to be wrong."""
ROUND = 10
"""Views of a scan with a repeated last one are usually a multiple of this, and one: 181, 361, 1801."""
ALIKE = 1.5
"""How many times as much as views a few steps apart mirrored views may differ."""
MAX_PAIRS = 64
"""Pairs of views half the scan apart that are looked at."""
SEAMLESS = 1.5
"""How many times as much as any view from the next the last may differ from the first of a full turn."""
ONWARD = 0.25
"""Share of what views some steps apart usually differ by that those across the ends of a full turn differ by."""
NOISE_SHARE = 0.2
"""Share of the noise that a step must change of a view to be told from none."""
FINER = 8
"""Parts of a column that views are moved by."""
REPEATED = ", and the last repeats the first"


def find_range(sinogram: NDArray[np.float64]) -> tuple[AngleRange, str, bool]:
    """Return the range of angles that the views cover, why, and whether the views show it.

    Parameters
    ----------
    sinogram
        `(view, column)`, float64.
    """
    views = sinogram.shape[0]
    edge = max(sinogram.shape[1] // 50, 1)
    border = np.concatenate([sinogram[:, :edge], sinogram[:, -edge:]], axis=1)
    border = border[np.isfinite(border)]
    background = float(np.median(border)) if border.size else 0.0
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
        return (
            AngleRange(start_deg=0.0, stop_deg=360.0, inclusive=repeats),
            reason + (REPEATED if repeats else ""),
            True,
        )
    if _closes(rows, ends, allowed):
        repeats = _starts_again(rows, ends)
        reason = "the views go on from the last to the first as from any to the next, so they cover a full turn"
        return (
            AngleRange(start_deg=0.0, stop_deg=360.0, inclusive=repeats),
            reason + (REPEATED if repeats else ""),
            True,
        )
    if last < allowed:
        repeats = _repeats(rows, min(ends, SEAM_STEPS, max((views - 2) // 4, 1)))
        reason = "the last view is the mirror image of the first, so they cover half a turn"
        return (
            AngleRange(start_deg=0.0, stop_deg=180.0, inclusive=repeats),
            reason + (REPEATED if repeats else ""),
            True,
        )
    return (
        AngleRange(start_deg=0.0, stop_deg=180.0),
        "half a turn is usual, but no views are mirror images of each other",
        False,
    )


def _across(rows: NDArray[np.float64], offset: int) -> float:
    """Return what views differ by from the mirrored ones so many views later."""
    count = rows.shape[0] - offset
    pairs = np.unique(np.linspace(0, count - 1, min(count, MAX_PAIRS)).astype(int))
    return _difference(rows[pairs], rows[pairs + offset][:, ::-1])


def _closes(rows: NDArray[np.float64], ends: int, allowed: float) -> bool:
    """Whether the views go on from the last to the first, unmirrored, where it can be told.

    That shows a full turn also about an axis so far off that hardly anything is seen from both sides. Of half a turn,
    the last view is as the first where this one is its own mirror image; then views before the one are as those after
    the other, whereas in a full turn they differ by the steps between them. Nothing
    tells of an object all of whose views are their own mirror images, at most `allowed` from them.
    """

    def apart(steps: int) -> NDArray[np.float64]:
        return np.asarray(((rows[steps:] - rows[:-steps]) ** 2).mean(axis=1))

    seam = float(((rows[0] - rows[-1]) ** 2).mean())
    if seam > SEAMLESS * float(apart(1).max()) or CLEARLY * seam > float(np.median(apart(rows.shape[0] // 4))):
        return False
    some = rows[:: max(rows.shape[0] // MAX_PAIRS, 1)]
    if _difference(some, some[:, ::-1]) < allowed:
        return False
    around = float(((rows[-ends] - rows[ends - 1]) ** 2).mean())
    return around > max(ONWARD * float(np.median(apart(2 * ends - 1))), seam)


def _starts_again(rows: NDArray[np.float64], ends: int) -> bool:
    """Whether the last view of a full turn is the first one again, or lies a step before it."""
    # views near the seam change as those across it
    before, behind = rows[-2 * ends :], rows[: 2 * ends]
    seam = float(((rows[0] - rows[-1]) ** 2).mean())
    one, two = (float(np.mean([(part[steps:] - part[:-steps]) ** 2 for part in (before, behind)])) for steps in (1, 2))
    # noise adds the same to each, and twice the way is four times the square
    step = (two - one) / 3
    noise = max(one - step, 0.0)
    if step > NOISE_SHARE * noise:
        return seam < noise + 0.3 * step
    return bool((rows.shape[0] - 1) % ROUND == 0)


def _repeats(rows: NDArray[np.float64], ends: int) -> bool:
    """Whether the last view of half a turn is the first one mirrored, or lies a step before it.

    The last views, mirrored, and the first ones follow each other as any other views do. What views some steps apart
    differ by changes little by little along them: pairs across the seam go on with it only where the views there are
    counted as they were measured, once or twice. Where noise hides that, the number of views tells what is usual.
    """
    reach, steps = 4 * ends, range(1, ends + 1)
    # what is too sharp to be moved by parts of a column would set mirrored views apart
    rows = 0.25 * rows[:, :-2] + 0.5 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
    off = []
    for shared in (1, 0):
        row = np.concatenate([rows[-reach:, ::-1], rows[shared:reach]])
        off.append(0.0)
        for step in steps:
            differences = _differences(row[:-step], row[step:])
            place = np.arange(differences.size) - reach
            across = (place < 0) & (place + step >= 0)
            expected = np.polyval(np.polyfit(place[~across], differences[~across], 2), place[across])
            typical = max(float(differences.mean()), float(np.finfo(np.float64).tiny))
            off[-1] += (float((differences[across] - expected).mean()) / typical) ** 2
    if max(off) > CLEARLY * min(off):
        return bool(off[0] < off[1])
    return bool((rows.shape[0] - 1) % ROUND == 0)


def _difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the mean square difference of views `(view, column)` from others, moved along as far as fits best."""
    product = _product(first, second).sum(axis=0)
    correlation = FINER * scipy.fft.irfft(product, FINER * _size(first))
    energy = float((first**2).sum() + (second**2).sum())
    return max(energy - 2.0 * float(correlation.max()), 0.0) / first.size


def _differences(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean square difference of each view from another `(view,)`, each moved along as far as fits best."""
    correlation = FINER * scipy.fft.irfft(_product(first, second), FINER * _size(first), axis=1)
    energy = (first**2).sum(axis=1) + (second**2).sum(axis=1)
    return np.asarray(np.maximum(energy - 2.0 * correlation.max(axis=1), 0.0) / first.shape[1])


def _product(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Return the spectra of the correlations of views with others `(view, frequency)`."""
    size = _size(first)
    return np.asarray(np.conj(scipy.fft.rfft(first, size)) * scipy.fft.rfft(second, size))


def _size(views: NDArray[np.float64]) -> int:
    return int(scipy.fft.next_fast_len(2 * views.shape[1], real=True))
