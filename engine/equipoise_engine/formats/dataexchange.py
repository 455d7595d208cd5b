"""Reader for Data Exchange HDF5 files of parallel-beam tomography.

Source: De Carlo et al. 2014, Scientific data exchange: a schema for HDF5-based storage of raw and analyzed
data, doi:10.1107/S160057751401604X.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from equipoise_engine.acquisition import CtAcquisition, DataState, Match
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.angles import repeated_views, to_radians
from equipoise_engine.formats.hdf5 import Stored, attribute, check_dataset, check_memory, find
from equipoise_engine.formats.state import state_without_flats
from equipoise_engine.geometry import ParallelBeam


def is_dataexchange(file: h5py.File, path: Path) -> bool:
    """Whether a file has the group `exchange` with a link called `data`."""
    if "exchange" not in set(file):
        return False
    exchange = find(file, "exchange", path)
    return isinstance(exchange, h5py.Group) and "data" in set(exchange)


def read_dataexchange(file: h5py.File, path: Path, centre_px: float | None) -> CtAcquisition:
    """Return the scan in an open Data Exchange file; values are read when needed.

    Raises
    ------
    BadInput
        Projections, frames or angles are missing, damaged, or do not fit together.
    """
    found = find(file, "exchange/data", path)
    if found is None:
        raise BadInput(f"{path.name}: exchange/data is missing")
    data = check_dataset(found, path, kinds="iuf", axes=(3,))
    views, rows, columns = (int(n) for n in data.shape)
    check_memory(views * columns * 16, f"one slice of {path.name} ({views} views of {columns} columns)")
    matched = [Match("projections", "exchange/data", (views, rows, columns), "the dataset that Data Exchange names")]
    warnings: list[str] = []

    frames: dict[str, Stored | None] = {}
    for role, name in (("flats", "data_white"), ("darks", "data_dark")):
        item = find(file, f"exchange/{name}", path)
        if item is None:
            frames[role] = None
            continue
        stored = check_dataset(item, path, kinds="iuf", axes=(2, 3))
        if tuple(stored.shape[-2:]) != (rows, columns):
            raise BadInput(
                f"{path.name}: exchange/{name} has frames of {tuple(stored.shape[-2:])} pixels,"
                f" the projections {(rows, columns)}",
                "Flats and darks must come from the same detector region as the projections.",
            )
        frames[role] = Stored(stored, path, add_axis=0 if stored.ndim == 2 else None)
        reason = "open-beam frames" if role == "flats" else "frames without beam"
        matched.append(Match(role, f"exchange/{name}", tuple(int(n) for n in stored.shape), reason))

    theta = find(file, "exchange/theta", path)
    if theta is None:
        angle_rad = np.linspace(0.0, np.pi, views, endpoint=False, dtype=np.float64)
        warnings.append(
            f"The file gives no angles (exchange/theta); {views} even steps over 180 degrees were taken,"
            " as the format says."
        )
    else:
        angles = check_dataset(theta, path, kinds="iuf", axes=(1,))
        values = np.asarray(Stored(angles, path)[...], dtype=np.float64)
        angle_rad, reading, notes = to_radians(values, attribute(angles, "units"), where=f"{path.name}: exchange/theta")
        warnings.extend(notes)
        matched.append(Match("angles", "exchange/theta", (values.size,), reading))
    warnings.extend(repeated_views(angle_rad))

    projections = Stored(data, path)
    if frames["flats"] is not None:
        state = DataState.COUNTS
        if frames["darks"] is None:
            warnings.append("The file has no dark frames; zero was taken.")
    else:
        hint = f"{attribute(data, 'description')} {attribute(data, 'units')}"
        state, note = state_without_flats(projections, hint, where=f"{path.name}: exchange/data")
        warnings.append(note)
    return CtAcquisition(
        path=path,
        format="Data Exchange HDF5",
        state=state,
        projections=projections,
        geometry=ParallelBeam(angle_rad=angle_rad, centre_px=centre_px),
        flats=frames["flats"],
        darks=frames["darks"],
        matched=tuple(matched),
        warnings=tuple(warnings),
    )
