"""Reader for HDF5 files of CT that follow no known format: by plain rules, or after what the user tells.

The only dataset of numbers with three axes that is not small holds the projections, unless its name says that it holds
something else; names also tell flats, darks and angles. One with two axes must be called a sinogram. Where that leaves
a choice, the user makes it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import h5py
import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, Match, Samples
from equipoise_engine.errors import BadInput, Incomplete, Unsupported
from equipoise_engine.formats.angles import to_radians
from equipoise_engine.formats.ct.hdf5_ct import Part, monitor_of, said_state, told_numbers, told_part
from equipoise_engine.formats.hdf5 import (
    Stored,
    check_dataset,
    check_memory,
    find,
    numeric_sources,
    read_text,
    try_find,
    walk,
)
from equipoise_engine.formats.known import GIVEN
from equipoise_engine.formats.roles import parsed, told_roles
from equipoise_engine.formats.stacks.stack import ROLES, Stack, scan_of_stack
from equipoise_engine.recipe import Known, Role, Source

SMALLEST = 16
"""Images have at least so many columns, and a scan so many views."""
TALLEST = 16
"""No detector has more than so many times as many rows as columns."""
_FLATS = re.compile(r"flat|white|bright|open_?beam|blank|^ff\d*$|^i0$|^ob$", re.IGNORECASE)
_DARKS = re.compile(r"dark|bias|^df\d*$", re.IGNORECASE)
_ANGLES = re.compile(r"theta|angle|^rot(ation)?s?$|omega|^phi$", re.IGNORECASE)
_OTHERS = re.compile(r"recon|volume|segment|label|mask|preview|thumb|histogram|weight", re.IGNORECASE)
_PROJECTIONS = re.compile(r"proj|tomo|sino|^raw|scan", re.IGNORECASE)
_RESULTS = ("NXtomoproc",)


def read_any_hdf5(file: h5py.File, path: Path, known: Known, kinds: str) -> CtAcquisition:
    """Return the CT scan in an open HDF5 file of no known format.

    Parameters
    ----------
    kinds
        The kinds of file that are read, for the message about one that is not.

    Raises
    ------
    Incomplete
        Which dataset holds the projections cannot be told.
    Unsupported
        The file is of another kind, or holds nothing that may be a scan.
    BadInput
        What the user names is not there, or parts do not fit together.
    """
    told = told_roles(known, path, ROLES)
    name = parsed(told.get("projections", ""))[0]
    if told.get("projections") == "":
        raise BadInput(f"{path.name}: a scan cannot do without projections", "Name the dataset that holds them.")
    sources: tuple[Source, ...] = ()
    if not name:
        _check_kind(file, path, kinds)
        sources = numeric_sources(file, path)
        name = _choose(path, sources, kinds, file)
    sources = sources or numeric_sources(file, path)
    found = find(file, name, path)
    if found is None:
        raise BadInput(
            f"{path.name}: there is no {name}, which was named as projections", "Choose one of its datasets."
        )
    data = check_dataset(found, path, kinds="iuf", axes=(2, 3))
    check_memory(int(max(data.shape[:2]) * data.shape[-1]) * 16, f"one slice of {path.name}, stored as {data.shape},")
    images = Part(name, data, GIVEN if "projections" in told else "the dataset of images in the file")

    # the stack swaps rows and columns itself
    lying = replace(images, transposed=known.transposed)
    # in a stack of sinograms the detector is the first axis and that of columns
    sizes: set[tuple[int, ...]] = {images.shape[1:], (images.shape[0], images.shape[1 if known.transposed else 2])}
    matched = [Match("projections", name, images.shape, images.reason)]
    frames: dict[str, Samples | None] = {}
    for role, pattern in (("flats", _FLATS), ("darks", _DARKS)):
        part = _frames(file, path, role, told, sources, images, sizes, pattern)
        frames[role] = None if part is None else part.samples(path)
        if part is not None:
            matched.append(Match(role, part.name, part.shape, part.reason))
    angle_deg, match = _angles(file, path, told, known, sources, lying)
    matched += [match] if match is not None else []
    # Roles that name datasets have been followed; frames among the images are left to the stack.
    left = [Role(role=role, source=source) for role, source in told.items() if _among(role, source)]
    _, hash_sign, chosen = told.get("projections", "").rpartition("#")
    if name and parsed(told.get("projections", ""))[1] is not None:
        left = [Role(role="projections", source=hash_sign + chosen), *(r for r in left if r.role != "projections")]
    layout = known.layout or _layout(lying, left)
    scan = scan_of_stack(
        Stack(
            path=path,
            format="HDF5",
            images=Stored(data, path, add_axis=0 if data.ndim == 2 else None),
            flats=frames["flats"],
            darks=frames["darks"],
            angle_deg=angle_deg,
            sources=sources,
            state=said_state(data),
            matched=tuple(matched),
        ),
        msgspec.structs.replace(known, roles=tuple(left), layout=layout),
    )
    if layout != known.layout:
        why = "the numbers of images, rows and columns allow nothing else"
        first, *rest = scan.matched
        scan = replace(scan, matched=(replace(first, reason=first.reason.replace(f": {GIVEN}", f": {why}")), *rest))
    if told.get("monitor"):
        numbers = told_numbers(file, path, told["monitor"], "monitor")
        if numbers.values.size != scan.shape[0]:
            raise BadInput(
                f"{path.name}: {scan.shape[0]} projections but {numbers.values.size} values in {numbers.name}; no"
                f" {'value' if numbers.values.size < scan.shape[0] else 'projection'} for index"
                f" {min(numbers.values.size, scan.shape[0])} and later"
            )
        monitor, match, notes = monitor_of(numbers)
        said = (match,) if match is not None else ()
        scan = replace(scan, monitor=monitor, matched=(*scan.matched, *said), warnings=(*scan.warnings, *notes))
    return scan


def _among(role: str, source: str) -> bool:
    """Whether a source names frames among the images."""
    name, frames = parsed(source)
    return role in ("projections", "flats", "darks") and not name and frames is not None


def _layout(images: Part, told: list[Role]) -> str:
    """Return what an image is where the numbers of images, rows and columns alone tell; else it is judged.

    Frames that the user counts must be there, and no detector has many times as many rows as columns.
    """
    count, rows, columns = images.shape
    last = max((frames.stop or 0 for role in told if (frames := parsed(role.source)[1]) is not None), default=0)
    if images.dataset.ndim == 2 or count == rows:
        return ""
    projections = last <= count and rows <= TALLEST * columns
    sinograms = last <= rows and count <= TALLEST * columns
    if projections == sinograms:
        return ""
    return "projections" if projections else "sinograms"


def _check_kind(file: h5py.File, path: Path, kinds: str) -> None:
    """Raise Unsupported for files that say of themselves that they are something else."""
    definitions = set()
    for where in walk(file, path):
        item = try_find(file, where, path) if where.endswith("/definition") else None
        if isinstance(item, h5py.Dataset) and item.size == 1:
            definitions.add(read_text(item, path))
    hint = f"Kinds that are read: {kinds}."
    if definitions & set(_RESULTS):
        raise Unsupported(
            f"{path.name}: is a reconstruction (NeXus {', '.join(sorted(definitions))}), not a scan", hint
        )
    if definitions:
        said = f"is a NeXus file of kind {', '.join(sorted(definitions))}, not tomography"
        raise Unsupported(f"{path.name}: {said}", f"{hint} Name the projections if it holds some.")
    if isinstance(try_find(file, "dataset/xml", path), h5py.Dataset):
        raise Unsupported(f"{path.name}: is an ISMRMRD file without acquisitions", hint)


def _choose(path: Path, sources: tuple[Source, ...], kinds: str, file: h5py.File) -> str:
    """Return the name of the projections."""
    real = [source for source in sources if _is_real(source)]
    large = [s for s in real if len(s.shape) == 3 and s.shape[2] >= SMALLEST and max(s.shape[:2]) >= SMALLEST]
    flat = [s for s in real if len(s.shape) == 2 and min(s.shape) >= SMALLEST]
    large = [s for s in large or flat if not any(_says(p, s) for p in (_FLATS, _DARKS, _ANGLES))]
    candidates = [s for s in large if not _says(_OTHERS, s)]
    named = [s for s in candidates if _says(_PROJECTIONS, s)]
    for chosen in (candidates, named):
        # any table has two axes: only its name makes it a sinogram
        if len(chosen) == 1 and (len(chosen[0].shape) == 3 or chosen is named):
            return chosen[0].name
    if not large:
        names = ", ".join(list(file)[:6]) or "nothing"
        raise Unsupported(
            f"{path.name}: is an HDF5 file of an unknown kind (it holds {names}), without images",
            f"Kinds that are read: {kinds}.",
        )
    some = ", ".join(f"{s.name} {s.shape}" for s in (candidates or large)[:5])
    raise Incomplete(
        f"{path.name}: whether one of its datasets holds the projections, and which, is not clear: {some}",
        "Name the dataset that holds the projections.",
        missing=("projections",),
        sources=tuple(large),
    )


def _is_real(source: Source) -> bool:
    return np.dtype(source.kind).kind in "iuf"


def _says(pattern: re.Pattern[str], source: Source) -> bool:
    """Whether a dataset, or the group that it is the data of, has such a name."""
    *groups, last = source.name.split("/")
    return bool(pattern.search(last)) or (bool(groups) and last == "data" and bool(pattern.search(groups[-1])))


def _frames(
    file: h5py.File,
    path: Path,
    role: str,
    told: dict[str, str],
    sources: tuple[Source, ...],
    images: Part,
    sizes: set[tuple[int, ...]],
    pattern: re.Pattern[str],
) -> Part | None:
    """Return the open-beam or beam-off frames in a dataset of their own."""
    if role in told:
        return None if _among(role, told[role]) else told_part(file, path, told[role], images, role)
    for source in sources:
        if source.name != images.name and _is_real(source) and _says(pattern, source) and source.shape[-2:] in sizes:
            dataset = check_dataset(_there(file, source.name, path), path, kinds="iuf", axes=(2, 3))
            return Part(source.name, dataset, "by its name")
    return None


def _angles(
    file: h5py.File, path: Path, told: dict[str, str], known: Known, sources: tuple[Source, ...], images: Part
) -> tuple[NDArray[np.float64] | None, Match | None]:
    """Return the angles in degrees, and where they come from; None where the file does not tell."""
    if known.angles is not None or told.get("angles") == "":
        return None, None
    name = told.get("angles", "")
    if not name:
        counts = images.shape[:2]
        fitting = [s for s in sources if len(s.shape) == 1 and _is_real(s) and _says(_ANGLES, s)]
        fitting = [s for s in fitting if s.shape[0] in counts] or fitting
        if not fitting:
            return None, None
        name = fitting[0].name
    numbers = told_numbers(file, path, name, "angles")
    angle_rad, reading, _ = to_radians(numbers.values, numbers.units, where=f"{path.name}: {numbers.name}")
    why = GIVEN if "angles" in told else "by its name"
    return np.rad2deg(angle_rad), Match("angles", numbers.name, (numbers.values.size,), f"{why}; {reading}")


def _there(file: h5py.File, name: str, path: Path) -> h5py.Dataset | h5py.Group:
    found = find(file, name, path)
    if found is None:
        raise BadInput(f"{path.name}: {name} is missing")
    return found
