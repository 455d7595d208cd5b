"""Reader for NXtomo: NeXus files of tomography, whichever entry they keep it in.

Source: NeXus application definition NXtomo, https://manual.nexusformat.org/classes/applications/NXtomo.html; the ESRF's
extensions of it, https://tomotools.gitlab-pages.esrf.fr/nxtomo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, Match
from equipoise_engine.errors import BadInput, EquipoiseError
from equipoise_engine.formats.ct.hdf5_ct import Numbers, Part, Parts, scan_of_parts, told_parts, values_of
from equipoise_engine.formats.hdf5 import (
    attribute,
    check_dataset,
    check_memory,
    find,
    numeric_sources,
    read_text,
    text_of,
    try_find,
    walk,
)
from equipoise_engine.formats.roles import parsed, told_roles
from equipoise_engine.formats.stacks.stack import ROLES
from equipoise_engine.geometry import ConeBeam, CtGeometry, FanBeam, ParallelBeam
from equipoise_engine.recipe import Known

PROJECTION, FLAT, DARK, INVALID = 0, 1, 2, 3
ALIGNMENT = -1
"""Of `image_key_control`, an extension by the ESRF: `image_key` calls these frames projections."""
_KEYS = (ALIGNMENT, PROJECTION, FLAT, DARK, INVALID)
_MILLIMETRES = {
    "m": 1e3,
    "metre": 1e3,
    "meter": 1e3,
    "cm": 10.0,
    "mm": 1.0,
    "um": 1e-3,
    "µm": 1e-3,
    "micron": 1e-3,
    "nm": 1e-6,
}
for _unit in ("meter", "metre"):
    _MILLIMETRES |= {f"{prefix}{_unit}": factor for prefix, factor in (("milli", 1.0), ("micro", 1e-3), ("nano", 1e-6))}
SMALLEST_FAN_RAD = math.radians(0.05)
"""Half the opening of a beam below which it is parallel: a synchrotron fans out by a tenth of this."""


@dataclass(frozen=True)
class _Layout:
    """Names found in a file: all links, groups that hold image keys, and entries defined as NXtomo."""

    names: tuple[str, ...]
    keyed: tuple[str, ...]
    entries: tuple[str, ...]


def _layout(file: h5py.File, path: Path) -> _Layout:
    names = walk(file, path)
    keyed: list[str] = []
    entries: list[str] = []
    for where in names:
        parent, _, name = where.rpartition("/")
        if name in ("image_key", "image_key_control") and parent not in keyed:
            keyed.append(parent)
        elif name == "definition":
            item = try_find(file, where, path)
            if isinstance(item, h5py.Dataset) and item.size == 1 and read_text(item, path) == "NXtomo":
                entries.append(parent)
    return _Layout(names, tuple(keyed), tuple(entries))


def is_nxtomo(file: h5py.File, path: Path) -> bool:
    """Whether a file has an entry defined as NXtomo, or image keys beside a link called `data`."""
    layout = _layout(file, path)
    return bool(layout.entries) or any(_has(file, group, "data", path) for group in layout.keyed)


def _has(file: h5py.File, group: str, name: str, path: Path) -> bool:
    """Whether a group has a link of this name, wherever it leads."""
    item = find(file, group or "/", path)
    return isinstance(item, h5py.Group) and name in set(item)


def read_nxtomo(file: h5py.File, path: Path, known: Known) -> CtAcquisition:
    """Return the scan in an open NeXus file; frames are sorted by image key and read when needed.

    Raises
    ------
    BadInput
        Frames, image keys or angles are missing, damaged, or differ in number.
    Incomplete
        The file has no angles, or keeps them in another file that is missing.
    """
    layout = _layout(file, path)
    told = told_roles(known, path, ROLES)
    group, name = _images(file, path, layout, told.get("projections", ""))
    found = find(file, name, path)
    if found is None:
        raise BadInput(f"{path.name}: {name} is missing")
    data = check_dataset(found, path, kinds="iuf", axes=(3,))
    views, columns = int(data.shape[0]), int(data.shape[2])
    check_memory(views * columns * 16, f"one slice of {path.name} ({views} frames of {columns} columns)")
    warnings: list[str] = []
    others = [entry for entry in layout.entries if not name.startswith(entry + "/")]
    if others and "projections" not in told:
        warnings.append(
            f"The file holds {len(layout.entries)} scans; the one in {_entry(file, path, group)} was taken, not"
            f" {', '.join(others[:5])}."
        )
    parts, notes = _sorted(file, path, group, name, data)
    warnings += notes
    entry = _entry(file, path, group)
    try:
        angle_name, item = _angles(file, path, layout, group, found)
        # what is damaged or of another kind is as good as missing: the user may give the angles
        angles = Numbers(angle_name, values_of(item, path), attribute(item, "units"))
        parts = replace(parts, angles=angles)
    except BadInput as error:
        parts = replace(parts, lacking=error)
    parts = replace(parts, monitor=_monitor(file, path, entry, views, parts.projections.shape[0]))
    parts = told_parts(file, path, parts, known)
    beam, matched, notes = _beam(file, path, entry, group, data)
    return scan_of_parts(
        path,
        "NXtomo",
        parts,
        known,
        sources=numeric_sources(file, path),
        warnings=(*warnings, *notes),
        matched=matched,
        geometry=beam,
    )


def _images(file: h5py.File, path: Path, layout: _Layout, source: str) -> tuple[str, str]:
    """Return the group with the frames and the name of their dataset, as told or as found."""
    name, _ = parsed(source)
    if name:
        return name.rpartition("/")[0], name
    group = _frames_group(file, path, layout)
    return group, f"{group}/data"


def _sorted(file: h5py.File, path: Path, group: str, name: str, data: h5py.Dataset) -> tuple[Parts, tuple[str, ...]]:
    """Return the frames sorted by their image keys, and warnings."""
    count = int(data.shape[0])
    key_name, keys = _keys(file, path, group, name, count)
    notes: tuple[str, ...] = ()
    if keys is None:
        reason = "all frames, as there are no image keys"
        return Parts(projections=Part(name, data, reason)), (
            "The file has no image keys: all frames were taken as projections.",
        )
    unknown = np.flatnonzero(~np.isin(keys, _KEYS))
    if unknown.size:
        raise BadInput(
            f"{path.name}: {key_name} is {keys[unknown[0]]:g} at index {unknown[0]}; -1 to 3 are defined",
            "Correct the image keys in the file.",
        )
    parts: dict[int, Part] = {}
    for key in (PROJECTION, FLAT, DARK):
        index = np.flatnonzero(keys == key).astype(np.int64)
        if index.size:
            parts[key] = Part(name, data, f"{index.size} of {count} frames with {key_name} = {key}", index)
    if PROJECTION not in parts:
        raise BadInput(f"{path.name}: none of the {count} image keys is 0, so there is no projection")
    for key, why in ((INVALID, "marked invalid"), (ALIGNMENT, "alignment images")):
        left = int(np.count_nonzero(keys == key))
        if left:
            notes = (*notes, f"{left} frames are {why} (image key {key}) and left out.")
    return Parts(projections=parts[PROJECTION], flats=parts.get(FLAT), darks=parts.get(DARK)), notes


def _keys(file: h5py.File, path: Path, group: str, name: str, count: int) -> tuple[str, NDArray[np.float64] | None]:
    """Return the name and values of the image keys; those for control also mark alignment images."""
    control = try_find(file, f"{group}/image_key_control", path)
    item = find(file, f"{group}/image_key", path) if control is None else control
    if item is not None:
        key_name = f"{group}/image_key{'' if control is None else '_control'}"
        keys = values_of(item, path)
        _check_length(path, key_name, keys.size, name, count)
        return key_name, keys
    return "", None


def _check_length(path: Path, name: str, length: int, frames_name: str, count: int) -> None:
    if length == count:
        return
    first = min(length, count)
    lacking = "value" if length < count else "frame"
    raise BadInput(
        f"{path.name}: {count} frames in {frames_name} but {length} values in {name};"
        f" no {lacking} for index {first} and later",
        "The scan was cut short or put together wrongly; ask for a complete copy.",
    )


def _monitor(file: h5py.File, path: Path, entry: str, images: int, views: int) -> Numbers | None:
    """Return the intensity of the beam, where the file has one for each frame or each projection."""
    for name in (f"{entry}/control/data", f"{entry}/instrument/diode/data"):
        item = try_find(file, name, path)
        if isinstance(item, h5py.Dataset) and item.size in (images, views) and item.dtype.kind in "iuf":
            try:
                return Numbers(name, values_of(item, path))
            except EquipoiseError:
                continue  # a scan can be read without it
    return None


def _frames_group(file: h5py.File, path: Path, layout: _Layout) -> str:
    """Return the group with the frames: with image keys first, inside an NXtomo entry before others."""
    candidates = [g for g in layout.keyed if _has(file, g, "data", path)]
    candidates += [
        f"{entry}/{place}"
        for entry in layout.entries
        for place in ("data", "instrument/detector")
        if f"{entry}/{place}" not in candidates and _has(file, f"{entry}/{place}", "data", path)
    ]
    if not candidates:
        raise BadInput(
            f"{path.name}: defined as NXtomo ({', '.join(layout.entries)}), but holds no frames",
            "Ask for a complete copy of the scan.",
        )
    candidates.sort(key=lambda g: not any(g.startswith(entry + "/") for entry in layout.entries))
    first_error: BadInput | None = None
    for group in candidates:
        try:
            if find(file, f"{group}/data", path) is not None:
                return group
        except BadInput as error:
            first_error = first_error or error
    if first_error is not None:
        raise first_error
    return candidates[0]


def _entry(file: h5py.File, path: Path, group: str) -> str:
    """Return the nearest NXentry or NXsubentry around a group, else the top."""
    parts = group.split("/")
    for length in range(len(parts) - 1, 1, -1):
        name = "/".join(parts[:length])
        item = find(file, name, path)
        if isinstance(item, h5py.Group) and attribute(item, "NX_class") in ("NXentry", "NXsubentry"):
            return name
    return "/".join(parts[:2])


def _angles(
    file: h5py.File, path: Path, layout: _Layout, group: str, data: h5py.Dataset | h5py.Group
) -> tuple[str, h5py.Dataset | h5py.Group]:
    """Return name and dataset of the rotation angles, one per frame."""
    entry = _entry(file, path, group)
    names = [f"{group}/rotation_angle", f"{entry}/sample/rotation_angle", f"{entry}/data/rotation_angle"]
    # Without these, the first axis of a plot of the same frames is the rotation.
    for plot in dict.fromkeys(n.rpartition("/")[0] for n in layout.names if n.startswith(entry + "/")):
        item = try_find(file, plot, path)
        if (
            isinstance(item, h5py.Group)
            and attribute(item, "NX_class") == "NXdata"
            and _plots(item, plot, group, file, path, data)
        ):
            axes = item.attrs.get("axes")
            if axes is not None and np.size(axes):
                first = text_of(np.atleast_1d(axes)[0])
                names += [f"{plot}/{first}", f"{plot}/{first.removesuffix('_set')}"]
    first_error: BadInput | None = None
    for name in dict.fromkeys(names):
        try:
            found = find(file, name, path)
        except BadInput as error:
            first_error = first_error or error
            continue
        if found is not None:
            return name, found
    if first_error is not None:
        raise first_error
    raise BadInput(
        f"{path.name}: no rotation angles: looked for {', '.join(dict.fromkeys(names))}",
        "Ask for a complete copy of the scan.",
    )


def _plots(
    item: h5py.Group, plot: str, group: str, file: h5py.File, path: Path, data: h5py.Dataset | h5py.Group
) -> bool:
    """Whether an NXdata group shows the frames."""
    if plot == group:
        return True
    signal = attribute(item, "signal") or "data"
    shown = try_find(file, f"{plot}/{signal}", path)
    if shown is None:
        return False
    return bool(shown == data) or (shown.file.filename == data.file.filename and shown.name == data.name)


def _beam(
    file: h5py.File, path: Path, entry: str, group: str, data: h5py.Dataset
) -> tuple[CtGeometry, tuple[Match, ...], tuple[str, ...]]:
    """Return the beam, its angles still to come, what its lengths were taken from, and warnings.

    NXtomo itself knows parallel beams only. The distance of the source is an extension by the ESRF; a beam that fans
    out noticeably is taken as the fan or the cone that it is.
    """
    rows, columns = (int(n) for n in data.shape[1:])
    places = (f"{entry}/sample", group, f"{entry}/instrument/detector")
    widths = [_length(file, path, f"{place}/x_pixel_size") for place in dict.fromkeys(places)]
    told = [width for width in widths if width is not None]
    detector = [width for width in told if not width.name.startswith(f"{entry}/sample/")]
    axis = _length(file, path, f"{entry}/instrument/source/distance")
    beyond = _length(file, path, f"{entry}/instrument/detector/distance")
    nothing = np.zeros(1)
    if axis and axis.mm and beyond and beyond.mm and detector and detector[0].mm:
        width, reach = detector[0].mm, axis.mm + beyond.mm
        if math.atan(0.5 * columns * width / reach) > SMALLEST_FAN_RAD:
            high = _length(file, path, detector[0].name.replace("/x_", "/y_"))
            match = Match(
                "beam",
                f"{axis.name}, {beyond.name}",
                (),
                f"source to axis {axis.mm:g} mm, to detector {reach:g} mm, element {width:g} mm;"
                f" {'one detector row: a fan' if rows == 1 else f'{rows} detector rows: a cone'}",
            )
            if rows == 1:
                return FanBeam(nothing, axis.mm, reach, width), (match,), ()
            row_mm = high.mm if high and high.mm else width
            return ConeBeam(nothing, axis.mm, reach, width, row_mm, (rows - 1) / 2), (match,), ()
    if told and told[0].mm is None:
        note = f"{told[0].name} is {told[0].said}; it was not used, and lengths count pixels."
        return ParallelBeam(nothing), (), (note,)
    if told and told[0].mm is not None:
        match = Match("pixel size", told[0].name, (), told[0].said)
        return ParallelBeam(nothing, pixel_mm=told[0].mm, calibrated=True), (match,), ()
    return ParallelBeam(nothing), (), ()


@dataclass(frozen=True)
class _Length:
    """A length as the file says it, in mm where it can be."""

    name: str
    said: str
    mm: float | None


def _length(file: h5py.File, path: Path, name: str) -> _Length | None:
    """Return a length, where the file has one; distances against the beam are below zero."""
    item = try_find(file, name, path)
    if not isinstance(item, h5py.Dataset) or item.size != 1 or item.dtype.kind not in "iuf":
        return None
    value, units = abs(float(read_text(item, path))), attribute(item, "units")
    factor = _MILLIMETRES.get(units.lower())
    said = f"{value:g} {units or 'without units'}"
    usable = factor is not None and np.isfinite(value) and value > 0
    return _Length(name, said, value * factor if usable and factor is not None else None)
