"""From the parts of an HDF5 file to a CT scan: what all readers of such files do once they know the parts.

What a part is found by differs between formats; that the user may name other parts, that angles belong to projections,
that flats come from the same detector, and what the numbers mean, does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState, Match, Samples
from equipoise_engine.errors import BadInput, Incomplete
from equipoise_engine.formats.angles import angles_of_text, evenly, repeated_views, to_radians
from equipoise_engine.formats.frames import Taken, Transposed, Turned
from equipoise_engine.formats.hdf5 import Stored, attribute, check_dataset, check_memory, find
from equipoise_engine.formats.known import GIVEN
from equipoise_engine.formats.roles import parsed, told_roles
from equipoise_engine.formats.stacks.stack import ROLES
from equipoise_engine.formats.stacks.viewangles import found_angles, trimmed
from equipoise_engine.formats.state import state_without_flats, unstretched
from equipoise_engine.geometry import CtGeometry, ParallelBeam
from equipoise_engine.recipe import Known, Source

STATE_ATTRIBUTE = "data_state"
"""Attribute of the projections that says what they are, as our writers leave it: a value of `DataState`."""
LARGEST_CHANGE = 10.0
"""How far a monitor may be from its mean before it is taken for something else."""
_STATES = tuple(state.value for state in (DataState.COUNTS, DataState.TRANSMISSION, DataState.ATTENUATION))


@dataclass(frozen=True)
class Part:
    """Images in a dataset.

    Parameters
    ----------
    name
        Of the dataset.
    frames
        Which images `(frame,)`, int64; None takes all.
    sinograms
        Whether the dataset is stored `(row, view, column)`.
    transposed
        Whether the last two axes of the dataset are swapped, or both of one image.
    """

    name: str
    dataset: h5py.Dataset
    reason: str
    frames: NDArray[np.int64] | None = None
    sinograms: bool = False
    transposed: bool = False

    @property
    def _axes(self) -> tuple[int, ...]:
        *first, rows, columns = (int(n) for n in self.dataset.shape)
        return (*first, columns, rows) if self.transposed else (*first, rows, columns)

    @property
    def stored(self) -> int:
        """Number of images in the dataset."""
        return 1 if self.dataset.ndim == 2 else self._axes[1 if self.sinograms else 0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(view, row, column)`."""
        count = self.stored if self.frames is None else int(self.frames.size)
        *first, columns = self._axes
        if len(first) == 1:
            return count, first[0], columns
        return count, first[0 if self.sinograms else 1], columns

    def samples(self, path: Path) -> Samples:
        """Return the images, read when asked for."""
        single = self.dataset.ndim == 2
        frames = None if single or self.sinograms else self.frames
        images: Samples = Stored(self.dataset, path, frames, add_axis=0 if single else None)
        images = Transposed(images) if self.transposed else images
        if single or not self.sinograms:
            return images
        turned = Turned(images)
        return turned if self.frames is None else Taken(turned, self.frames)


@dataclass(frozen=True)
class Numbers:
    """One number for each view, or for each image of the dataset that the views are part of.

    Parameters
    ----------
    relative
        Whether those of a monitor are relative to the open-beam frames already.
    """

    name: str
    values: NDArray[np.float64]
    units: str = ""
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a scan as its format tells.

    Parameters
    ----------
    lacking
        Why there are no angles, where there are none: raised unless the user gives them.
    """

    projections: Part
    flats: Part | None = None
    darks: Part | None = None
    angles: Numbers | None = None
    lacking: BadInput | None = None
    monitor: Numbers | None = None


# --- what the user tells ------------------------------------------------------------------------------


def told_parts(file: h5py.File, path: Path, parts: Parts, known: Known) -> Parts:
    """Return the parts with those that the user names in place of those that were found.

    Raises
    ------
    BadInput
        A name is not in the file, or what it names cannot have the role.
    """
    told = told_roles(known, path, ROLES)
    images = parts.projections
    chosen_frames: NDArray[np.int64] | None = None
    if known.layout and images.sinograms != (known.layout == "sinograms"):
        # which frames are projections was said of images of the other kind
        images = replace(images, sinograms=not images.sinograms, frames=None, reason=f"{known.layout}, {GIVEN}")
    images = replace(images, transposed=known.transposed)
    if known.transposed:
        images = replace(images, reason=f"{images.reason}; rows and columns swapped, {GIVEN}")
    if "projections" in told:
        images, chosen_frames = _told_projections(file, path, told["projections"], images)
    found: dict[str, Part | None] = {}
    taken: list[NDArray[np.int64]] = []
    for role, part in (("flats", parts.flats), ("darks", parts.darks)):
        if role in told:
            part = told_part(file, path, told[role], images, role)
            if part is not None and part.dataset == images.dataset and part.frames is not None:
                taken.append(part.frames)
        if part is not None:
            # frames of the detector beside sinograms lie as they do
            part = replace(part, transposed=known.transposed and (part.sinograms or not images.sinograms))
        found[role] = part
    if taken and chosen_frames is None:
        # What is now a flat or a dark is no projection any more.
        frames = np.arange(images.stored) if images.frames is None else images.frames
        images = replace(images, frames=np.setdiff1d(frames, np.concatenate(taken)))
    if images.shape[0] == 0:
        raise BadInput(f"{path.name}: no image of {images.name} is left as a projection")
    numbers: dict[str, Numbers | None] = {}
    for role, value in (("angles", parts.angles), ("monitor", parts.monitor)):
        numbers[role] = value
        if role in told:
            numbers[role] = told_numbers(file, path, told[role], role) if told[role] else None
    lacking = parts.lacking
    if told.get("angles") == "":
        lacking = Incomplete(
            f"{path.name}: the scan was said to have no angles", "Give the range of the angles.", missing=("angles",)
        )
    return replace(
        parts,
        projections=images,
        flats=found["flats"],
        darks=found["darks"],
        angles=numbers["angles"],
        lacking=lacking,
        monitor=numbers["monitor"],
    )


def _told_projections(file: h5py.File, path: Path, source: str, images: Part) -> tuple[Part, NDArray[np.int64] | None]:
    """Return the projections that the user names, and their frames where these are named as well.

    What the reader knows of a dataset, as which of its frames are projections, holds where only its name is given.
    """
    name, frames = parsed(source)
    if name:
        dataset = _named(file, path, name, "projections", axes=(3,))
        if dataset == images.dataset:
            images = replace(images, reason=f"{GIVEN}; {images.reason}")
        else:
            images = Part(name, dataset, GIVEN, sinograms=images.sinograms, transposed=images.transposed)
    elif frames is None:
        raise BadInput(f"{path.name}: a scan cannot do without projections", "Name the dataset that holds them.")
    if frames is None:
        return images, None
    chosen = _frames(path, images, frames, "projections")
    return replace(images, reason=GIVEN, frames=chosen), chosen


def told_part(file: h5py.File, path: Path, source: str, images: Part, role: str) -> Part | None:
    """Return the frames that the user names for a role, in a dataset of their own or among the images; None for none.

    Raises
    ------
    BadInput
        The dataset is not in the file or has other axes, or there are not so many frames.
    """
    if not source:
        return None
    name, frames = parsed(source)
    part = replace(images, frames=None)
    if name:
        part = Part(name, _named(file, path, name, role, axes=(2, 3)), GIVEN)
        if part.dataset == images.dataset:
            part = replace(part, sinograms=images.sinograms)
    chosen = None if frames is None else _frames(path, part, frames, role)
    return replace(part, reason=GIVEN, frames=chosen)


def _frames(path: Path, part: Part, frames: slice, role: str) -> NDArray[np.int64]:
    """Return the indices of the frames that a source takes."""
    count = part.stored
    if frames.start >= count or (frames.stop is not None and frames.stop > count):
        raise BadInput(
            f"{path.name}: {role} were to be frames {frames.start} to {frames.stop or count} of {part.name}, which has"
            f" {count}"
        )
    return np.arange(count, dtype=np.int64)[frames]


def told_numbers(file: h5py.File, path: Path, source: str, role: str) -> Numbers:
    """Return the numbers, one for each view, that the user names: a dataset, or a text file beside the scan."""
    name, frames = parsed(source)
    beside = path.parent / name
    if find(file, name, path) is None and beside.is_file():
        values, units = angles_of_text(beside), ""
    else:
        dataset = _named(file, path, name, role, axes=(1, 2, 3))
        values, units = values_of(dataset, path), attribute(dataset, "units")
    if frames is not None and (frames.start >= values.size or (frames.stop or 0) > values.size):
        raise BadInput(f"{path.name}: {source} goes beyond the {values.size} values of {name}")
    return Numbers(name, values if frames is None else values[frames], units)


def _named(file: h5py.File, path: Path, name: str, role: str, *, axes: tuple[int, ...]) -> h5py.Dataset:
    found = find(file, name, path)
    if found is None:
        raise BadInput(
            f"{path.name}: there is no {name}, which was named as {role}", "Choose one of the datasets of the file."
        )
    return check_dataset(found, path, kinds="iuf", axes=axes)


def values_of(item: h5py.Dataset | h5py.Group, path: Path) -> NDArray[np.float64]:
    """Return the numbers of a small dataset, one after the other `(value,)`, float64."""
    dataset = check_dataset(item, path, kinds="iuf", axes=(1, 2, 3))
    check_memory(int(np.prod(dataset.shape, dtype=np.float64)) * 16, f"{dataset.name} of {path.name}")
    return np.asarray(Stored(dataset, path)[...], dtype=np.float64).reshape(-1)


# --- the scan -----------------------------------------------------------------------------------------


def scan_of_parts(
    path: Path,
    form: str,
    parts: Parts,
    known: Known,
    *,
    sources: tuple[Source, ...],
    warnings: tuple[str, ...] = (),
    matched: tuple[Match, ...] = (),
    geometry: CtGeometry | None = None,
) -> CtAcquisition:
    """Return the scan that some parts make up; values are read when needed.

    Parameters
    ----------
    form
        Name of the format, for people.
    sources
        Parts of the file that may have a role.
    warnings, matched
        What the reader has to say beside.
    geometry
        The beam, whose angles are replaced; None takes a parallel beam of unknown pixels.

    Raises
    ------
    BadInput
        Parts do not fit together; the message names the first index that has no partner.
    Incomplete
        There are no angles, or none that can be read.
    """
    images = parts.projections
    views, rows, columns = images.shape
    check_memory(views * columns * 16, f"one slice of {path.name} ({views} views of {columns} columns)")
    said = list(warnings)
    guessed: list[str] = []
    matches = [Match("projections", images.name, images.shape, images.reason)]
    frames: dict[str, Samples | None] = {}
    for role, part in (("flats", parts.flats), ("darks", parts.darks)):
        frames[role] = None
        if part is None:
            continue
        if part.shape[1:] != (rows, columns):
            raise BadInput(
                f"{path.name}: {part.name} has frames of {part.shape[1:]} pixels, the projections {(rows, columns)}",
                "Flats and darks must come from the same detector region as the projections.",
            )
        frames[role] = part.samples(path)
        matches.append(Match(role, part.name, part.shape, part.reason))

    projections = images.samples(path)
    if known.angles is None and parts.angles is None and parts.lacking is None:
        angle_rad, why, doubts = found_angles(projections, frames["flats"], frames["darks"], (), path.name)
        matches.append(Match("angles", "the views", (views,), why))
        said += [*doubts, *repeated_views(angle_rad)]
        guessed.append("angles")
    else:
        angle_rad, match, notes = _angles(path, parts, known, sources)
        said += notes
        matches += [match] if match is not None else []
    monitor = None
    if parts.monitor is not None:
        numbers, flats = parts.monitor, parts.flats
        among = flats is not None and flats.dataset == images.dataset and numbers.values.size == images.stored
        monitor, match, notes = monitor_of(
            replace(numbers, values=_of_views(path, parts, numbers, "monitor")),
            numbers.values[flats.frames] if among and flats is not None and flats.frames is not None else None,
        )
        said += notes
        matches += [match] if match is not None else []

    word = said_state(images.dataset)
    if known.state:
        state = DataState(known.state)
    elif word:
        state = DataState(word)
        matches.append(Match("data state", images.name, (), f"the file says {word}"))
    elif frames["flats"] is not None:
        state = DataState.COUNTS
    else:
        hint = " ".join(attribute(images.dataset, name) for name in ("description", "long_name", "units"))
        state, note = state_without_flats(projections, hint.strip(), where=f"{path.name}: {images.name}")
        said.append(note)
        guessed.append("state")
    projections, note = unstretched(projections, state, where=f"{path.name}: {images.name}")
    said += [note] if note else []
    if state is DataState.COUNTS and frames["flats"] is not None and frames["darks"] is None:
        said.append("The file has no dark frames; zero was taken.")
    beam = ParallelBeam(angle_rad) if geometry is None else replace(geometry, angle_rad=angle_rad)
    return CtAcquisition(
        path=path,
        format=form,
        state=state,
        projections=projections,
        geometry=beam,
        flats=frames["flats"],
        darks=frames["darks"],
        matched=(*matches, *matched),
        warnings=tuple(said),
        monitor=monitor,
        guessed=tuple(guessed),
        sources=sources,
    )


def _angles(
    path: Path, parts: Parts, known: Known, sources: tuple[Source, ...]
) -> tuple[NDArray[np.float64], Match | None, list[str]]:
    """Return the angles of the projections in radians, where they come from, and warnings."""
    views = parts.projections.shape[0]
    if known.angles is not None:
        # told() says so, and checks them
        return np.radians(evenly(known.angles, views)), None, []
    if parts.angles is None:
        lacking = parts.lacking or BadInput(f"{path.name}: there are no angles")
        raise Incomplete(
            lacking.message,
            "Give the range of the angles, or name where they are; or " + _lower(lacking.hint),
            missing=("angles",),
            sources=tuple(s for s in sources if len(s.shape) == 1),
        )
    numbers, trim = parts.angles, ""
    if parts.projections.frames is None:
        values, trim = trimmed(numbers.values, views)
        numbers = replace(numbers, values=values)
    values = _of_views(path, parts, numbers, "angles")
    where = f"{path.name}: {parts.angles.name}"
    angle_rad, reading, notes = to_radians(values, parts.angles.units, where=where)
    reading += f"; {trim}" if trim else ""
    match = Match("angles", parts.angles.name, (parts.angles.values.size,), reading)
    return angle_rad, match, [*notes, *repeated_views(angle_rad)]


def _lower(hint: str) -> str:
    return hint[:1].lower() + hint[1:] if hint else "ask for a complete copy of the scan."


def _of_views(path: Path, parts: Parts, numbers: Numbers, what: str) -> NDArray[np.float64]:
    """Return one number for each projection."""
    images, size = parts.projections, numbers.values.size
    views = images.shape[0]
    if size == views:
        return numbers.values
    if images.frames is not None and size == images.stored:
        return numbers.values[images.frames]
    # Most files have as many numbers as images; others that lack some are to be told so as well.
    count, kind = (views, "projections") if images.frames is None else (images.stored, f"frames in {images.name}")
    first = min(size, count)
    lacking = f"no {what[:-1] if what == 'angles' else 'value'}" if size < count else f"no {kind.split()[0][:-1]}"
    chosen = "" if images.frames is None else f", of which {views} are projections,"
    raise BadInput(
        f"{path.name}: {count} {kind}{chosen} but {size} {what if what == 'angles' else 'values'} in {numbers.name};"
        f" {lacking} for index {first} and later",
        "The scan was cut short or put together wrongly; ask for a complete copy, or name other parts.",
    )


def monitor_of(
    numbers: Numbers, open_beam: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64] | None, Match | None, list[str]]:
    """Return the intensity of the beam in each view relative to the open-beam frames, where a monitor tells it.

    Parameters
    ----------
    numbers
        What the monitor says for each view.
    open_beam
        And for each open-beam frame; without it, intensities are relative to the mean of all views.
    """
    views = numbers.values
    mean = 1.0 if numbers.relative else float(np.mean(views if open_beam is None else open_beam))
    where = f"The beam monitor {numbers.name}"
    if not (np.isfinite(views).all() and np.isfinite(mean) and (views > 0).all() and mean > 0):
        return None, None, [f"{where} has values that are not above zero; it was not used."]
    relative = views / mean
    if relative.max() > LARGEST_CHANGE or relative.min() < 1.0 / LARGEST_CHANGE:
        said = f"{relative.min():.3g} to {relative.max():.3g} times its mean"
        return None, None, [f"{where} goes from {said}: it was not taken for the intensity of the beam."]
    if (relative == 1.0).all():
        return None, None, []
    over = "all views" if open_beam is None and not numbers.relative else "the flats"
    reason = f"{relative.min():.4g} to {relative.max():.4g} of its mean over {over}"
    return relative, Match("monitor", numbers.name, (views.size,), reason), []


def said_state(dataset: h5py.Dataset) -> str:
    """Return what the file says that its numbers mean, as `recipe.Known.state`; empty where it does not."""
    word = attribute(dataset, STATE_ATTRIBUTE)
    return word if word in _STATES else ""
