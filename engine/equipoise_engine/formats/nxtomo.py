"""Reader for NXtomo: NeXus files of parallel-beam tomography, whichever entry they keep it in.

Source: NeXus application definition NXtomo, https://manual.nexusformat.org/classes/applications/NXtomo.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState, Match
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.angles import repeated_views, to_radians
from equipoise_engine.formats.hdf5 import (
    Stored,
    attribute,
    check_dataset,
    check_memory,
    find,
    read_text,
    text_of,
    try_find,
    walk,
)
from equipoise_engine.formats.state import state_without_flats
from equipoise_engine.geometry import ParallelBeam

PROJECTION, FLAT, DARK, INVALID = 0, 1, 2, 3
_KEY_NAMES = {PROJECTION: "projections", FLAT: "flats", DARK: "darks", INVALID: "invalid frames"}
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
        if name == "image_key":
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


def read_nxtomo(file: h5py.File, path: Path, centre_px: float | None) -> CtAcquisition:
    """Return the scan in an open NeXus file; frames are sorted by image key and read when needed.

    Raises
    ------
    BadInput
        Frames, image keys or angles are missing, damaged, or differ in number.
    """
    layout = _layout(file, path)
    group = _frames_group(file, path, layout)
    name = f"{group}/data"
    found = find(file, name, path)
    if found is None:
        raise BadInput(f"{path.name}: {name} is missing")
    data = check_dataset(found, path, kinds="iuf", axes=(3,))
    count, rows, columns = (int(n) for n in data.shape)
    check_memory(count * columns * 16, f"one slice of {path.name} ({count} frames of {columns} columns)")
    warnings: list[str] = []

    key_item = find(file, f"{group}/image_key", path)
    if key_item is None:
        key_name, keys = "", np.zeros(count, dtype=np.int64)
        warnings.append("The file has no image keys: all frames were taken as projections.")
    else:
        key_name = f"{group}/image_key"
        keys = _numbers(key_item, path).astype(np.int64)
        _check_length(path, key_name, keys.size, name, count)
    unknown = np.flatnonzero(~np.isin(keys, list(_KEY_NAMES)))
    if unknown.size:
        raise BadInput(
            f"{path.name}: {key_name} is {keys[unknown[0]]} at index {unknown[0]}; 0 to 3 are defined",
            "Correct the image keys in the file.",
        )
    projections = np.flatnonzero(keys == PROJECTION).astype(np.int64)
    if projections.size == 0:
        raise BadInput(f"{path.name}: none of the {count} image keys is 0, so there is no projection")

    angle_name, angle_item = _angles(file, path, layout, group, found)
    angles = _numbers(angle_item, path)
    _check_length(path, angle_name, angles.size, name, count)
    where = f"{path.name}: {angle_name}"
    angle_rad, reading, notes = to_radians(angles[projections], attribute(angle_item, "units"), where=where)
    warnings.extend(notes)
    warnings.extend(repeated_views(angle_rad))

    matched = [
        Match(
            "projections",
            name,
            (projections.size, rows, columns),
            _reason(projections.size, count, PROJECTION, key_name),
        ),
        Match("angles", angle_name, (angles.size,), reading),
    ]
    frames: dict[int, Stored | None] = {}
    for key in (FLAT, DARK):
        index = np.flatnonzero(keys == key).astype(np.int64)
        frames[key] = Stored(data, path, index) if index.size else None
        if index.size:
            reason = _reason(index.size, count, key, key_name)
            matched.append(Match(_KEY_NAMES[key], name, (index.size, rows, columns), reason))
    invalid = int(np.count_nonzero(keys == INVALID))
    if invalid:
        warnings.append(f"{invalid} frames are marked invalid (image key 3) and left out.")

    stored = Stored(data, path, projections)
    if frames[FLAT] is not None:
        state = DataState.COUNTS
        if frames[DARK] is None:
            warnings.append("The file has no dark frames; zero was taken.")
    else:
        state, note = state_without_flats(stored, attribute(data, "units"), where=f"{path.name}: {name}")
        warnings.append(note)
    pixel, pixel_match, pixel_warning = _pixel(file, path, layout, group)
    if pixel_match is not None:
        matched.append(pixel_match)
    warnings.extend(pixel_warning)
    return CtAcquisition(
        path=path,
        format="NXtomo",
        state=state,
        projections=stored,
        geometry=ParallelBeam(
            angle_rad=angle_rad,
            pixel_mm=pixel if pixel is not None else 1.0,
            centre_px=centre_px,
            calibrated=pixel is not None,
        ),
        flats=frames[FLAT],
        darks=frames[DARK],
        matched=tuple(matched),
        warnings=tuple(warnings),
    )


def _reason(chosen: int, count: int, key: int, key_name: str) -> str:
    if not key_name:
        return "all frames, as there are no image keys"
    return f"{chosen} of {count} frames with {key_name} = {key}"


def _numbers(item: h5py.Dataset | h5py.Group, path: Path) -> NDArray[np.float64]:
    dataset = check_dataset(item, path, kinds="iuf", axes=(1, 2, 3))
    return np.asarray(Stored(dataset, path)[...], dtype=np.float64).reshape(-1)


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


def _pixel(
    file: h5py.File, path: Path, layout: _Layout, group: str
) -> tuple[float | None, Match | None, tuple[str, ...]]:
    """Return the pixel size in mm at the object, where the file gives one with units."""
    entry = _entry(file, path, group)
    for name in (
        f"{entry}/sample/x_pixel_size",
        f"{group}/x_pixel_size",
        f"{entry}/instrument/detector/x_pixel_size",
    ):
        item = try_find(file, name, path)
        if not isinstance(item, h5py.Dataset) or item.size != 1 or item.dtype.kind not in "iuf":
            continue
        value, units = float(read_text(item, path)), attribute(item, "units")
        factor = _MILLIMETRES.get(units.lower())
        if factor is None or not np.isfinite(value) or value <= 0:
            said = f"{value:g} {units or 'without units'}"
            return None, None, (f"{name} is {said}; it was not used, and lengths count pixels.",)
        return value * factor, Match("pixel size", name, (), f"{value:g} {units}"), ()
    return None, None, ()
