"""From a stack of images to a scan: which frames are projections, flats and darks, what they mean, and the angles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState, Match, Samples
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.angles import angles_of_text, evenly, repeated_views, to_radians
from equipoise_engine.formats.frames import Taken, Transposed
from equipoise_engine.formats.known import GIVEN
from equipoise_engine.formats.roles import parsed, told_roles
from equipoise_engine.formats.stacks.layout import Clues, Layout, laid_out, thinned
from equipoise_engine.formats.stacks.viewangles import found_angles, trimmed
from equipoise_engine.formats.state import state_without_flats, unstretched
from equipoise_engine.geometry import CtGeometry, ParallelBeam
from equipoise_engine.recipe import Known, Source

__all__ = ["ROLES", "Stack", "frames_of", "scan_of_stack"]

ROLES = ("projections", "flats", "darks", "angles", "monitor")
"""Roles of the parts of a CT scan."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What the files tell of a stack of images.

    Parameters
    ----------
    path, format
        Where the images were read from, and as what.
    images
        `(image, row, column)`; a single sinogram has one image. Which of them are projections, flats and darks is told
        by `Known.roles` with sources like "#0:10"; what an image is, by `Known.layout`, else it is judged; with
        `Known.transposed` it is `(image, column, row)`.
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
    """

    path: Path
    format: str
    images: Samples
    flats: Samples | None = None
    darks: Samples | None = None
    angle_deg: NDArray[np.float64] | None = None
    angle_units: str = "degrees"
    geometry: Callable[[NDArray[np.float64]], CtGeometry] | None = None
    sources: tuple[Source, ...] = ()
    layout: str = ""
    state: str = ""
    matched: tuple[Match, ...] = ()
    beside: Callable[[str], Samples] | None = None
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Told:
    """What the files and the user tell: sources by role, and the angles `(view,)` in the unit, which may be empty."""

    stack: Stack
    known: Known
    roles: dict[str, str]
    angles: NDArray[np.float64] | None
    units: str

    @property
    def name(self) -> str:
        return self.stack.path.name


@dataclass(frozen=True)
class _Parts:
    """Frames `(frame, row, column)` by role; `frames` are all of the images, `own` those that are projections."""

    projections: Samples
    flats: Samples | None
    darks: Samples | None
    frames: Samples
    own: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int, int]:
        views, rows, columns = (int(n) for n in self.projections.shape)
        return views, rows, columns


@dataclass(frozen=True)
class _Notes:
    """What is said of a scan while it is put together."""

    guessed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)


def scan_of_stack(stack: Stack, known: Known) -> CtAcquisition:
    """Return the scan that a stack of images holds, with what the user tells of it.

    Raises
    ------
    BadInput
        Parts do not fit together; the message names the first index that has no partner.
    Unsupported
        The values are no real numbers.
    """
    notes = _Notes()
    images, seen = _images(stack, known)
    told = _told(stack, known)
    flats, darks = _fields(images, told)
    clues = Clues(images, seen, flats, None if told.angles is None else told.angles.size)
    frames, layout = laid_out(clues, stack.layout, known, told.name)
    if layout.warning:
        notes.guessed.append("layout")
        notes.warnings.append(layout.warning)
    parts = _parts(frames, flats, darks, told)
    notes.matches.extend(_matches(parts, layout, told))
    state, projections = _state(parts, told, notes)
    parts = replace(parts, projections=projections)
    angle_rad = _angles(parts, layout, told, notes)
    return CtAcquisition(
        path=stack.path,
        format=stack.format,
        state=state,
        projections=parts.projections,
        geometry=ParallelBeam(angle_rad=angle_rad) if stack.geometry is None else stack.geometry(angle_rad),
        flats=parts.flats,
        darks=parts.darks,
        matched=tuple(notes.matches),
        warnings=(*notes.warnings, *repeated_views(angle_rad)),
        guessed=tuple(notes.guessed),
        sources=stack.sources or (Source(f"#0:{frames.shape[0]}", tuple(frames.shape), str(frames.dtype)),),
    )


# --- what is told -----------------------------------------------------------------------------------


def _images(stack: Stack, known: Known) -> tuple[Samples, NDArray[np.float64]]:
    """Return the images as they lie, and some of their values."""
    name = stack.path.name
    images = _checked(stack.images, name, "the images")
    images = Transposed(images) if known.transposed else images
    seen = thinned(images)
    if not np.isfinite(seen).any():
        raise BadInput(f"{name}: none of the {seen.size} values looked at is finite")
    return images, seen


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


def _told(stack: Stack, known: Known) -> _Told:
    """Return what is told, with the angles in the text file that a role names, else those of the files."""
    roles = told_roles(known, stack.path, ROLES)
    by_files = _Told(stack, known, roles, stack.angle_deg, stack.angle_units)
    if "angles" not in roles or known.angles is not None:
        return by_files
    source, frames = parsed(roles["angles"])
    file = (stack.path if stack.path.is_dir() else stack.path.parent) / source
    if not source:
        return replace(by_files, angles=None)
    if stack.angle_deg is not None and not file.is_file():
        return by_files
    angles = angles_of_text(file)
    return replace(by_files, angles=angles if frames is None else angles[frames], units="")


# --- frames by role ---------------------------------------------------------------------------------


def _fields(images: Samples, told: _Told) -> tuple[Samples | None, Samples | None]:
    """Return the flats and the darks that are not among the images, lying as these do."""
    flats, darks = _field("flats", told.stack.flats, told), _field("darks", told.stack.darks, told)
    if told.known.transposed:
        flats = None if flats is None else _as_images(flats, images, told.known)
        darks = None if darks is None else _as_images(darks, images, told.known)
    return flats, darks


def _field(role: str, given: Samples | None, told: _Told) -> Samples | None:
    """Return the frames of a role after what the user tells of it; frames among the images are not dealt with here."""
    if role not in told.roles:
        return None if given is None else _checked(given, told.name, role)
    source, frames = parsed(told.roles[role])
    if not source:
        return None
    if given is None:
        if told.stack.beside is None:
            raise BadInput(
                f"{told.name}: there is no {source!r} that could be {role}",
                "Frames among the images are written #first:end, as #0:10.",
            )
        given = told.stack.beside(source)
        if frames is not None:
            given = Taken(given, frames_of(frames, int(given.shape[0]), role, told.roles[role], told.name))
    return _checked(given, told.name, role)


def _as_images(frames: Samples, images: Samples, known: Known) -> Samples:
    """Return frames of the detector, swapped as the images are unless these are sinograms and the frames are not."""
    swapped = Transposed(frames)
    sinograms = (int(images.shape[0]), int(images.shape[2]))
    if known.layout == "sinograms" and tuple(frames.shape[1:]) == sinograms:
        return frames
    if not known.layout and tuple(swapped.shape[1:]) != tuple(images.shape[1:]) and frames.shape[1:] == sinograms:
        return frames
    return swapped


def _parts(frames: Samples, flats: Samples | None, darks: Samples | None, told: _Told) -> _Parts:
    """Return frames by role; those among the images come before those from elsewhere."""
    own, inside = _divided(frames, told.roles, told.name)
    projections = frames if own.size == frames.shape[0] else Taken(frames, own)
    return _Parts(projections, inside.get("flats", flats), inside.get("darks", darks), frames, own)


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


# --- matches ----------------------------------------------------------------------------------------


def _matches(parts: _Parts, layout: Layout, told: _Told) -> list[Match]:
    """Return what was taken for what: of each role what the files tell, else what is said of any stack."""
    given = {match.role: match for match in told.stack.matched}
    matches = [_match_of_projections(parts.shape, layout, told, given.pop("projections", None))]
    for role, part in (("flats", parts.flats), ("darks", parts.darks)):
        if part is None:
            continue
        _check_frames(part, role, parts.shape, told.name)
        why = f"{GIVEN}: {told.roles[role]}" if role in told.roles else "beside the projections"
        matches.append(given.pop(role, Match(role, "frames", tuple(part.shape), why)))
    return [*matches, *given.values()]


def _match_of_projections(shape: tuple[int, int, int], layout: Layout, told: _Told, given: Match | None) -> Match:
    said = f"{shape[0]} views, {shape[1]} rows and {shape[2]} columns; the images are {layout.name}: {layout.reason}"
    if told.known.transposed:
        said += f"; rows and columns swapped, {GIVEN}"
    source = "the images" if given is None else given.source
    chosen = told.roles.get("projections")
    if chosen is not None and not parsed(chosen)[0]:
        source = f"{GIVEN}: {chosen}"
    return Match("projections", source, shape, said if given is None else f"{given.reason}; {said}")


def _check_frames(part: Samples, role: str, shape: tuple[int, ...], name: str) -> None:
    if tuple(part.shape[1:]) != shape[1:]:
        raise BadInput(
            f"{name}: {role} have {part.shape[1]} rows and {part.shape[2]} columns, the projections {shape[1]} and"
            f" {shape[2]}",
            f"Take other images for {role}, or none.",
        )


# --- state and angles -------------------------------------------------------------------------------


def _state(parts: _Parts, told: _Told, notes: _Notes) -> tuple[DataState, Samples]:
    """Return what the numbers mean, and the projections without a stretch of their values."""
    known = told.known.state or told.stack.state
    if known:
        state = DataState(known)
    elif parts.flats is not None:
        state = DataState.COUNTS
    else:
        state, note = state_without_flats(parts.projections, "", where=told.name)
        notes.guessed.append("state")
        notes.warnings.append(note)
    projections, note = unstretched(parts.projections, state, where=told.name)
    if note:
        notes.warnings.append(note)
    return state, projections


def _angles(parts: _Parts, layout: Layout, told: _Told, notes: _Notes) -> NDArray[np.float64]:
    """Return the angles of the projections in radians `(view,)`: given, told, or found."""
    views, every = parts.shape[0], int(parts.frames.shape[0])
    if told.known.angles is not None:
        return to_radians(evenly(told.known.angles, views), "degrees", where=told.name)[0]
    if told.angles is not None:
        # where each image has an angle, those of flats and darks are left out with them
        angles = told.angles[parts.own] if told.angles.size == every else told.angles
        return _told_angles(angles, views, told, notes)
    left_out = told.stack.missing if layout.name == "projections" and parts.own.size == every else ()
    angle_rad, why, warnings = found_angles(parts.projections, parts.flats, parts.darks, left_out, told.name)
    notes.guessed.append("angles")
    notes.warnings.extend(warnings)
    notes.matches.append(Match("angles", "the views", (views,), why))
    return angle_rad


def _told_angles(angles: NDArray[np.float64], views: int, told: _Told, notes: _Notes) -> NDArray[np.float64]:
    """Return the angles that the files or the user tell, in radians; what was done to them joins their match."""
    angles, trim = trimmed(np.asarray(angles, dtype=np.float64), views)
    angle_rad, reading, warnings = to_radians(angles, told.units, where=told.name)
    notes.warnings.extend(warnings)
    done = "; ".join(part for part in (trim, reading) if part)
    matches = notes.matches
    at = next((i for i, match in enumerate(matches) if match.role == "angles"), None)
    if at is not None:
        matches[at] = replace(matches[at], shape=(angles.size,), reason=f"{matches[at].reason}; {done}")
    else:
        source = f"{GIVEN}: {told.roles['angles']}" if "angles" in told.roles else "as the files have them"
        matches.append(Match("angles", source, (angles.size,), done))
    return angle_rad
