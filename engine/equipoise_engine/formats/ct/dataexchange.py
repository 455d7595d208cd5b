"""Reader for Data Exchange HDF5 files of parallel-beam tomography.

Source: De Carlo et al. 2014, Scientific data exchange: a schema for HDF5-based storage of raw and analyzed
data, doi:10.1107/S160057751401604X; the order of axes, https://github.com/data-exchange/dxfile.
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np

from equipoise_engine.acquisition import CtAcquisition, Match
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.ct.hdf5_ct import Numbers, Part, Parts, scan_of_parts, told_parts, values_of
from equipoise_engine.formats.hdf5 import attribute, check_dataset, check_memory, find, numeric_sources, try_find
from equipoise_engine.formats.roles import parsed, told_roles
from equipoise_engine.formats.stacks.stack import ROLES
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.recipe import Known

PIXEL = "measurement/instrument/detector/actual_pixel_size_x"
"""Side of a detector element as seen at the object; the format means metres where it gives no unit."""
MONITOR = "exchange/monitor"
"""Intensity of the beam in each view: an addition of ours, as the format has no place for it."""
LARGEST_PIXEL_MM = 10.0
_MILLIMETRES = {"": 1e3, "m": 1e3, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "nm": 1e-6}
_DATA = re.compile(r"data_?(\d*)$")
_SINOGRAMS = re.compile(r"y\s*:\s*theta\w*\s*:\s*x$")


def is_dataexchange(file: h5py.File, path: Path) -> bool:
    """Whether a file has the group `exchange` with a link called `data`, or `data` and a number."""
    return bool(_datasets(file, path))


def _datasets(file: h5py.File, path: Path) -> list[str]:
    """Return the names in `exchange` that may be projections, the usual one first."""
    if "exchange" not in set(file):
        return []
    exchange = find(file, "exchange", path)
    names = [str(name) for name in exchange] if isinstance(exchange, h5py.Group) else []
    numbered = {name: found.group(1) for name in names if (found := _DATA.match(name))}
    return sorted(numbered, key=lambda name: int(numbered[name] or -1))


def read_dataexchange(file: h5py.File, path: Path, known: Known) -> CtAcquisition:
    """Return the scan in an open Data Exchange file; values are read when needed.

    Raises
    ------
    BadInput
        Projections, frames or angles are missing, damaged, or do not fit together.
    """
    usual, *others = _datasets(file, path)
    name = parsed(told_roles(known, path, ROLES).get("projections", ""))[0] or f"exchange/{usual}"
    found = find(file, name, path)
    if found is None:
        raise BadInput(f"{path.name}: {name} is missing")
    data = check_dataset(found, path, kinds="iuf", axes=(3,))
    sinograms = bool(_SINOGRAMS.match(attribute(data, "axes").lower()))
    views, columns = int(data.shape[1 if sinograms else 0]), int(data.shape[2])
    check_memory(views * columns * 16, f"one slice of {path.name} ({views} views of {columns} columns)")
    why = "the dataset that Data Exchange names" + (", stored as sinograms (axes y:theta:x)" if sinograms else "")
    frames: dict[str, Part | None] = {}
    for role, part, reason in (
        ("flats", "exchange/data_white", "open-beam frames"),
        ("darks", "exchange/data_dark", "frames without beam"),
    ):
        item = find(file, part, path)
        frames[role] = None
        if item is not None:
            stored = check_dataset(item, path, kinds="iuf", axes=(2, 3))
            turned = stored.ndim == 3 and bool(_SINOGRAMS.match(attribute(stored, "axes").lower()))
            frames[role] = Part(part, stored, reason, sinograms=turned)
    theta = find(file, "exchange/theta", path) if known.angles is None else None
    angles = None
    if theta is not None:
        check_dataset(theta, path, kinds="iuf", axes=(1,))
        angles = Numbers("exchange/theta", values_of(theta, path), attribute(theta, "units"))
    monitor = try_find(file, MONITOR, path)
    beam, matched, warnings = _beam(file, path)
    if others and not known.roles:
        warnings += (f"The file also holds {', '.join(others[:5])}; {usual} was taken.",)
    parts = Parts(
        projections=Part(name, data, why, sinograms=sinograms),
        flats=frames["flats"],
        darks=frames["darks"],
        angles=angles,
        monitor=None if monitor is None else Numbers(MONITOR, values_of(monitor, path), relative=True),
    )
    return scan_of_parts(
        path,
        "Data Exchange HDF5",
        told_parts(file, path, parts, known),
        known,
        sources=numeric_sources(file, path),
        warnings=warnings,
        matched=matched,
        geometry=beam,
    )


def _beam(file: h5py.File, path: Path) -> tuple[ParallelBeam, tuple[Match, ...], tuple[str, ...]]:
    """Return the beam, its angles still to come, where its pixels come from, and warnings."""
    nothing = np.zeros(1)
    item = try_find(file, PIXEL, path)
    if not isinstance(item, h5py.Dataset) or item.size != 1 or item.dtype.kind not in "iuf":
        return ParallelBeam(nothing), (), ()
    value, units = float(np.asarray(item[()]).reshape(-1)[0]), attribute(item, "units")
    pixel_mm = value * _MILLIMETRES.get(units.lower(), np.nan)
    said = f"{value:g} {units or 'without units'}"
    if not 0 < pixel_mm <= LARGEST_PIXEL_MM:
        return ParallelBeam(nothing), (), (f"{PIXEL} is {said}; it was not used, and lengths count pixels.",)
    return ParallelBeam(nothing, pixel_mm=pixel_mm, calibrated=True), (Match("pixel size", PIXEL, (), said),), ()
