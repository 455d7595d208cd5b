"""From a stack of images to a scan: what an image is, which frames are projections, flats and darks, and the angles.

What an image is follows from the data. The mass of an object is the same in every view of a slice, whereas it differs
between slices: along the views the sum of a row stays the same although its values change, along the slices it does
not.

Source: Ludwig 1966, doi:10.1002/cpa.3160190207 (moments of projections).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState, Match, Samples
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.angles import angles_of_text, evenly, repeated_views, to_radians
from equipoise_engine.formats.frames import Frames, Taken, Transposed, Turned
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.known import GIVEN
from equipoise_engine.formats.roles import parsed, told_roles
from equipoise_engine.formats.stacks.sinogram import MIN_VIEWS, find_range
from equipoise_engine.formats.state import state_without_flats, unstretched
from equipoise_engine.geometry import CtGeometry, ParallelBeam
from equipoise_engine.recipe import AngleRange, Known, Source

__all__ = ["Frames", "found_angles", "frames_of", "scan_of_stack", "trimmed"]

ROLES = ("projections", "flats", "darks", "angles", "monitor")
"""Roles of the parts of a CT scan."""
MAX_IMAGES = 48
MAX_LINES = 48
MAX_COLUMNS = 256
"""Largest numbers of images, rows and columns that tell what an image is."""
CLEAR = 3.0
"""How many times as steady the sums along the views must be as those along the slices to tell the two."""
LOOKS = 5
"""Views that tell in which row most changes."""
NEARLY = 0.02
"""Share of a step between angles that repeated ones may differ by."""


def scan_of_stack(
    path: Path,
    format: str,  # noqa: A002 - the acquisition's word
    images: Samples,
    known: Known,
    *,
    flats: Samples | None = None,
    darks: Samples | None = None,
    angle_deg: NDArray[np.float64] | None = None,
    angle_units: str = "degrees",
    geometry: Callable[[NDArray[np.float64]], CtGeometry] | None = None,
    sources: tuple[Source, ...] = (),
    layout: str = "",
    state: str = "",
    matched: tuple[Match, ...] = (),
    beside: Callable[[str], Samples] | None = None,
    missing: tuple[int, ...] = (),
) -> CtAcquisition:
    """Return the scan that a stack of images holds.

    Parameters
    ----------
    images
        `(image, row, column)`; a single sinogram has one image. Which of them are projections, flats and darks is told
        by `known.roles` with sources like "#0:10"; what an image is, by `known.layout`, else it is judged; with
        `known.transposed` it is `(image, column, row)`.
    flats, darks
        Open-beam and beam-off frames from elsewhere `(frame, row, column)`; where they are given, roles that name them
        have been followed.
    angle_deg
        Angles of all projections `(view,)`, float64, where the files tell; else they are found or guessed, and
        "angles" is among the `guessed` of the scan. Repeats at both ends may belong to flats and darks.
    angle_units
        Unit of `angle_deg`; empty where the files do not say.
    geometry
        Makes the geometry from angles in radians, where the files tell more than a parallel beam of unknown pixels.
    sources
        Parts of the files that may be given a role.
    layout
        What an image is, where files of this kind always are so; else it is judged.
    state
        What the numbers mean, where the files tell; else it is judged.
    matched
        What the files tell of the projections, flats and darks, in place of what is said of any stack.
    beside
        Opens the images that a role names; without it, such a role is refused unless the caller has followed it.
    missing
        Places at which images are missing, of all that there should be: where images are projections, angles that are
        found leave these out.

    Raises
    ------
    BadInput
        Parts do not fit together; the message names the first index that has no partner.
    Unsupported
        The values are no real numbers.
    """
    name = path.name
    images = _checked(images, name, "the images")
    images = Transposed(images) if known.transposed else images
    seen = _thinned(images)
    if not np.isfinite(seen).any():
        raise BadInput(f"{name}: none of the {seen.size} values looked at is finite")
    roles = told_roles(known, path, ROLES)
    told_angles, units = _told_angles(roles, path, known, angle_deg, angle_units)
    flats = _part("flats", roles, flats, beside, name)
    darks = _part("darks", roles, darks, beside, name)
    if known.transposed:
        flats, darks = (None if part is None else _as_images(part, images, known) for part in (flats, darks))
    warnings: list[str] = []
    guessed: list[str] = []
    given = {match.role: match for match in matched}

    if layout and known.layout not in ("", layout):
        raise BadInput(f"{name}: the images of such a scan are {layout}, not {known.layout}")
    reason, sure = "as files of this kind have them", True
    layout_told = bool(layout or known.layout or known.transposed)
    if not layout:
        layout, reason, sure = _layout(images, seen, known, flats, None if told_angles is None else told_angles.size)
    if images.shape[0] == 1 and layout == "projections" and min(images.shape[1:]) > 1:
        raise BadInput(f"{name}: one projection is no scan", "A single image can be a sinogram: take that layout.")
    if images.shape[0] == 1 and flats is None and not known.layout and not known.transposed:
        images, turned = _upright(images, seen[0], None if told_angles is None else told_angles.size)
        if turned:
            reason = "there is one image, whose columns must be views"
            guessed.append("layout")
            warnings.append(
                f"The {images.shape[1]} columns of the image were taken as the views, as {turned}. Tell the layout"
                " sinograms if its rows are."
            )
    if sure and not layout_told and _lie_on_their_side(seen, layout):
        guessed.append("layout")
        warnings.append(
            f"The images were taken as {layout}, as {reason}; but their sums look rather as if their rows and columns"
            " were swapped. If so, tell that they are transposed."
        )
    if not sure:
        guessed.append("layout")
        warnings.append(
            f"Whether an image is a projection or a sinogram was guessed: {layout}, as {reason}. The images may be no"
            " views of an object at all, but slices of it."
        )
    frames: Samples = Turned(images) if layout == "sinograms" else images
    own, inside = _divided(frames, roles, name)
    flats, darks = inside.get("flats", flats), inside.get("darks", darks)
    if told_angles is not None and told_angles.size == frames.shape[0]:
        told_angles = told_angles[own]
    projections = frames if own.size == frames.shape[0] else Taken(frames, own)

    reason += f"; rows and columns swapped, {GIVEN}" if known.transposed else ""
    shape = tuple(int(n) for n in projections.shape)
    said = f"{shape[0]} views, {shape[1]} rows and {shape[2]} columns; the images are {layout}: {reason}"
    first = given.pop("projections", None)
    kept = "" if first is None else f"{first.reason}; "
    source = "the images" if first is None else first.source
    if "projections" in roles and not parsed(roles["projections"])[0]:
        source = f"{GIVEN}: {roles['projections']}"
    matches = [Match("projections", source, shape, kept + said)]
    for role, part in (("flats", flats), ("darks", darks)):
        if part is None:
            continue
        _check_frames(part, role, shape, name)
        why = f"{GIVEN}: {roles[role]}" if role in roles else "beside the projections"
        match = given.pop(role, None)
        matches.append(match if match is not None else Match(role, "frames", tuple(part.shape), why))
    matches += given.values()

    meaning, projections = _state(projections, flats, known, state, guessed, warnings, name)
    if known.angles is not None:
        angle_rad, _, _ = to_radians(evenly(known.angles, shape[0]), "degrees", where=name)
    elif told_angles is not None:
        angle_rad = _angle_rad(told_angles, units, shape[0], roles, name, matches, warnings)
    else:
        guessed.append("angles")
        left_out = missing if layout == "projections" and own.size == frames.shape[0] else ()
        angle_rad, why, notes = found_angles(projections, flats, darks, left_out, name)
        warnings += notes
        matches.append(Match("angles", "the views", (shape[0],), why))
    warnings += repeated_views(angle_rad)

    return CtAcquisition(
        path=path,
        format=format,
        state=meaning,
        projections=projections,
        geometry=ParallelBeam(angle_rad=angle_rad) if geometry is None else geometry(angle_rad),
        flats=flats,
        darks=darks,
        matched=tuple(matches),
        warnings=tuple(warnings),
        guessed=tuple(guessed),
        sources=sources or (Source(f"#0:{frames.shape[0]}", tuple(frames.shape), str(frames.dtype)),),
    )


# --- parts ------------------------------------------------------------------------------------------


def _checked(images: Samples, name: str, what: str) -> Samples:
    """Return images after a look at their shape and type, with three axes."""
    shape = tuple(int(n) for n in images.shape)
    if images.dtype.kind not in "iuf":
        raise Unsupported(f"{name}: {what} hold values of type {images.dtype}; real numbers are needed")
    if len(shape) != 3:
        raise BadInput(f"{name}: {what} have shape {shape}; (image, row, column) is needed")
    if 0 in shape:
        raise BadInput(f"{name}: {what} are empty: their shape is {shape}")
    return images


def _as_images(frames: Samples, images: Samples, known: Known) -> Samples:
    """Return frames of the detector, swapped as the images are unless these are sinograms and the frames are not."""
    swapped = Transposed(frames)
    sinograms = (int(images.shape[0]), int(images.shape[2]))
    if known.layout == "sinograms" and tuple(frames.shape[1:]) == sinograms:
        return frames
    if not known.layout and tuple(swapped.shape[1:]) != tuple(images.shape[1:]) and frames.shape[1:] == sinograms:
        return frames
    return swapped


def _told_angles(
    roles: dict[str, str], path: Path, known: Known, angle_deg: NDArray[np.float64] | None, units: str
) -> tuple[NDArray[np.float64] | None, str]:
    """Return the angles in the text file that a role names, else those of the files, and their unit."""
    if "angles" not in roles or known.angles is not None:
        return angle_deg, units
    source, frames = parsed(roles["angles"])
    file = (path if path.is_dir() else path.parent) / source
    if not source or (angle_deg is not None and not file.is_file()):
        return (angle_deg if source else None), units
    angles = angles_of_text(file)
    return (angles if frames is None else angles[frames]), ""


def _part(
    role: str,
    roles: dict[str, str],
    given: Samples | None,
    beside: Callable[[str], Samples] | None,
    name: str,
) -> Samples | None:
    """Return the frames of a role after what the user tells of it; frames among the images are not dealt with here."""
    if role not in roles:
        return None if given is None else _checked(given, name, role)
    source, frames = parsed(roles[role])
    if not source:
        return None
    if given is None:
        if beside is None:
            raise BadInput(
                f"{name}: there is no {source!r} that could be {role}",
                "Frames among the images are written #first:end, as #0:10.",
            )
        given = beside(source)
        if frames is not None:
            given = Taken(given, frames_of(frames, int(given.shape[0]), role, roles[role], name))
    return _checked(given, name, role)


def _divided(frames: Samples, roles: dict[str, str], name: str) -> tuple[NDArray[np.int64], dict[str, Samples]]:
    """Return which frames are projections, and those frames that have another role."""
    count = int(frames.shape[0])
    left = np.ones(count, dtype=bool)
    inside: dict[str, Samples] = {}
    for role in ("flats", "darks"):
        source, chosen = parsed(roles.get(role, ""))
        if source or chosen is None:
            continue
        indices = frames_of(chosen, count, role, roles[role], name)
        inside[role] = Taken(frames, indices)
        left[indices] = False
    source, chosen = parsed(roles.get("projections", ""))
    if not source and chosen is not None:
        indices = frames_of(chosen, count, "projections", roles["projections"], name)
        shared = indices[~left[indices]]
        if shared.size:
            raise BadInput(f"{name}: frame {shared[0]} is given two roles", "Give each frame one role.")
    else:
        indices = np.flatnonzero(left).astype(np.int64)
    if indices.size == 0:
        raise BadInput(f"{name}: no frame of {count} is left for the projections", "Give fewer frames other roles.")
    return indices, inside


def frames_of(chosen: slice, count: int, role: str, source: str, name: str) -> NDArray[np.int64]:
    """Return the indices of the frames that a source takes `(frame,)`, int64.

    Raises
    ------
    BadInput
        There are not so many.
    """
    indices = np.arange(count, dtype=np.int64)[chosen]
    if indices.size == 0 or (chosen.stop is not None and chosen.stop > count):
        raise BadInput(f"{name}: {source} was given for {role}, but there are {count} frames, from 0 to {count - 1}")
    return indices


def _check_frames(part: Samples, role: str, shape: tuple[int, ...], name: str) -> None:
    if tuple(part.shape[1:]) != shape[1:]:
        raise BadInput(
            f"{name}: {role} have {part.shape[1]} rows and {part.shape[2]} columns, the projections {shape[1]} and"
            f" {shape[2]}",
            f"Take other images for {role}, or none.",
        )


def _state(
    projections: Samples,
    flats: Samples | None,
    known: Known,
    state: str,
    guessed: list[str],
    warnings: list[str],
    name: str,
) -> tuple[DataState, Samples]:
    if known.state or state:
        meaning = DataState(known.state or state)
    elif flats is not None:
        meaning = DataState.COUNTS
    else:
        meaning, note = state_without_flats(projections, "", where=name)
        warnings.append(note)
        guessed.append("state")
    projections, note = unstretched(projections, meaning, where=name)
    if note:
        warnings.append(note)
    return meaning, projections


# --- what an image is -------------------------------------------------------------------------------


def _layout(
    images: Samples, seen: NDArray[np.float64], known: Known, flats: Samples | None, angles: int | None
) -> tuple[str, str, bool]:
    """Return what an image is, why, and whether that is sure."""
    count, rows, columns = (int(n) for n in images.shape)
    if known.layout:
        return known.layout, GIVEN, True
    if count == 1:
        return "sinograms", "there is one image, whose rows must be views", True
    if rows == 1:
        return "projections", "they have one row", True
    if flats is not None and tuple(flats.shape[1:]) == (rows, columns):
        return "projections", "open-beam frames have their size", True
    if flats is not None and tuple(flats.shape[1:]) == (count, columns):
        return "sinograms", "open-beam frames have as many rows as there are images", True
    if angles is not None and (angles == count) != (angles == rows):
        return ("projections" if angles == count else "sinograms"), f"there are {angles} angles", True
    if (count < MIN_VIEWS) != (rows < MIN_VIEWS):
        few = "projections" if rows < MIN_VIEWS else "sinograms"
        return few, f"{min(count, rows)} views would be too few", True
    along_images, along_rows = _unsteadiness(seen)
    if along_images > 0 and along_rows > 0:
        sums = (
            f"sums over columns are {max(along_images, along_rows) / min(along_images, along_rows):.3g} times as steady"
        )
        if along_rows > CLEAR * along_images:
            return "projections", f"{sums} from image to image as from row to row", True
        if along_images > CLEAR * along_rows:
            return "sinograms", f"{sums} from row to row as from image to image", True
    turning = [_turns(images, index) for index in (True, False)]
    if turning[0] != turning[1]:
        layout, where = ("projections", "images") if turning[0] else ("sinograms", "rows")
        return layout, f"{where} half a turn apart are mirror images", True
    return "projections", "is usual and the values tell neither", False


def _upright(images: Samples, seen: NDArray[np.float64], angles: int | None) -> tuple[Samples, str]:
    """Return a single image with views as its rows, and why it was turned; nothing where it was not.

    Parameters
    ----------
    images
        `(1, row, column)`.
    seen
        Some of its values `(row, column)`.
    angles
        Number of angles, where it is known.
    """
    _, rows, columns = (int(n) for n in images.shape)
    as_rows, as_columns = _unsteadiness(seen[None])[1], _unsteadiness(seen.T[None])[1]
    if angles is not None and (angles == rows) != (angles == columns):
        why = f"there are {angles} angles" if angles == columns else ""
    else:
        clear = as_columns > 0 and as_rows > CLEAR * as_columns and min(seen.shape) >= MIN_VIEWS
        why = f"their sums are {as_rows / as_columns:.3g} times as steady as those of rows" if clear else ""
    if not why:
        return images, ""
    check_memory(2 * rows * columns * images.dtype.itemsize, f"an image of {rows} x {columns}")
    return np.ascontiguousarray(np.asarray(images[0]).T)[None], why


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


def _thinned(images: Samples) -> NDArray[np.float64]:
    """Return some images, rows and columns, spread over all of them."""
    count, rows, columns = (int(n) for n in images.shape)
    step = (math.ceil(rows / MAX_LINES), math.ceil(columns / MAX_COLUMNS))
    chosen = np.unique(np.linspace(0, count - 1, min(count, MAX_IMAGES)).astype(int))
    parts = [np.asarray(images[int(i), :: step[0], :: step[1]], dtype=np.float64) for i in chosen]
    return np.stack(parts)


def _turns(images: Samples, projections: bool) -> bool:
    """Whether views are mirror images of each other, if images are projections, or if not."""
    count, rows, columns = (int(n) for n in images.shape)
    check_memory(4 * max(count, rows) * columns * 8, "one sinogram")
    values = np.asarray(images[:, rows // 2, :] if projections else images[count // 2], dtype=np.float64)
    return values.shape[0] >= MIN_VIEWS and find_range(values)[2]


# --- angles -----------------------------------------------------------------------------------------


def _angle_rad(
    angles: NDArray[np.float64],
    units: str,
    views: int,
    roles: dict[str, str],
    name: str,
    matches: list[Match],
    warnings: list[str],
) -> NDArray[np.float64]:
    """Return the angles that the files or the user tell, in radians; what was done to them joins their match."""
    angles, trim = trimmed(np.asarray(angles, dtype=np.float64), views)
    angle_rad, reading, notes = to_radians(angles, units, where=name)
    warnings += notes
    done = "; ".join(part for part in (trim, reading) if part)
    at = next((i for i, match in enumerate(matches) if match.role == "angles"), None)
    if at is not None:
        matches[at] = replace(matches[at], shape=(angles.size,), reason=f"{matches[at].reason}; {done}")
    else:
        source = f"{GIVEN}: {roles['angles']}" if "angles" in roles else "as the files have them"
        matches.append(Match("angles", source, (angles.size,), done))
    return angle_rad


def found_angles(
    projections: Samples, flats: Samples | None, darks: Samples | None, missing: tuple[int, ...], name: str
) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
    """Return the even angles that the views show, in radians `(view,)`, why they were taken, and warnings.

    Parameters
    ----------
    projections, flats, darks
        `(frame, row, column)`.
    missing
        Places at which views are missing, of all that there should be.
    name
        File named in messages.

    Raises
    ------
    BadInput
        There is one view only.
    """
    views = int(projections.shape[0])
    covered, reason, sure = AngleRange(start_deg=0.0, stop_deg=180.0), "half a turn is usual", False
    if views >= MIN_VIEWS:
        covered, reason, sure = find_range(_sinogram(projections, flats, darks))
    around = " with those of the missing images between them" if missing else ""
    said = (
        f"The file holds no angles; {covered.start_deg:g} to {covered.stop_deg:g} degrees"
        f" {'with' if covered.inclusive else 'without'} the end{around} were taken: {reason}."
        f"{'' if sure else ' This is a guess.'} Give the angles if they are others."
    )
    angles = np.delete(evenly(covered, views + len(missing)), list(missing))
    angle_rad, _, notes = to_radians(angles, "degrees", where=name)
    return angle_rad, reason, (said, *notes)


def _sinogram(projections: Samples, flats: Samples | None, darks: Samples | None) -> NDArray[np.float64]:
    """Return the row in which most changes from view to view `(view, column)`, float64."""
    views, rows, columns = (int(n) for n in projections.shape)
    check_memory(4 * views * columns * 8, f"one sinogram of {views} views and {columns} columns")
    some = np.stack([_frame(projections, (view * views) // LOOKS) for view in range(min(views, LOOKS))])
    dark = np.zeros((rows, columns)) if darks is None else _frame(darks, darks.shape[0] // 2)
    beam = None if flats is None else _frame(flats, flats.shape[0] // 2) - dark
    if beam is not None:
        typical = np.median(beam[np.isfinite(beam)]) if np.isfinite(beam).any() else 1.0
        beam = np.where(beam > 0.01 * typical, beam, max(float(typical), 1.0))
        some = (some - dark) / beam
    inner = slice(rows // 4, max(rows - rows // 4, rows // 4 + 1))
    row = rows // 4 + int(np.argmax(np.nan_to_num(some[:, inner], posinf=0.0, neginf=0.0).var(axis=0).mean(axis=1)))
    values = np.asarray(projections[:, row, :], dtype=np.float64)
    if beam is None:
        return values
    values = (values - dark[row]) / beam[row]
    return np.asarray(-np.log(np.clip(np.nan_to_num(values, nan=1.0), 1e-4, 1e4)))


def _frame(samples: Samples, index: int) -> NDArray[np.float64]:
    return np.asarray(samples[index], dtype=np.float64)


def trimmed(angle_deg: NDArray[np.float64], views: int) -> tuple[NDArray[np.float64], str]:
    """Return angles without those that repeat the first or the last where the others are as many as the views.

    While flats and darks are taken the object stands still: their angles repeat those of the first and the last view.
    The text says what was left out, and is empty where nothing was.

    Parameters
    ----------
    angle_deg
        `(angle,)`, float64.
    views
        Number of projections.
    """
    extra = angle_deg.size - views
    if extra <= 0 or views < 2:
        return angle_deg, ""
    steps = np.abs(np.diff(angle_deg))
    moving = np.flatnonzero(steps > NEARLY * float(np.median(steps[steps > 0])) if (steps > 0).any() else steps > 0)
    if moving.size == 0:
        return angle_deg, ""
    first, last = int(moving[0]), angle_deg.size - 2 - int(moving[-1])
    if first + last != extra:
        return angle_deg, ""
    return angle_deg[first : angle_deg.size - last], (
        f"{first} repeats of the first and {last} of the last angle were left out, which belong to other frames"
    )
