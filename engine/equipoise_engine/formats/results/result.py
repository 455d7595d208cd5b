"""What every written result says about itself."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from equipoise_engine.errors import BadInput
from equipoise_engine.volume import Volume

PROGRAM = "Equipoise"
NOT_FOR_DIAGNOSIS = "Not for diagnostic use."


def program_version() -> str:
    """Return the version of this program."""
    try:
        return version("equipoise")
    except PackageNotFoundError:
        return "unknown"


def unit_of(volume: Volume) -> str:
    """Return the unit of the values of a volume."""
    if volume.modality == "mri":
        return "arbitrary"
    return "1/mm" if volume.calibrated else "1/pixel"


def describe(volume: Volume) -> dict[str, Any]:
    """Return provenance, geometry and units of a volume, JSON values only."""
    return {
        "program": PROGRAM,
        "version": program_version(),
        "note": NOT_FOR_DIAGNOSIS,
        "modality": volume.modality,
        "unit": unit_of(volume),
        "voxel_mm": [float(size) for size in volume.voxel_mm],
        "calibrated": volume.calibrated,
        "first_slice": volume.first_slice,
        "provenance": volume.provenance,
    }


def describe_json(volume: Volume) -> str:
    """Return `describe` as JSON text in a fixed order."""
    return json.dumps(describe(volume), sort_keys=True, indent=1)


def check_volume(volume: Volume) -> None:
    """Raise BadInput where a volume cannot be written: no slices, or sizes that are not positive."""
    if volume.data.ndim != 3 or 0 in volume.data.shape:
        raise BadInput(f"a volume of shape {volume.data.shape} cannot be exported; (slice, y, x) is needed")
    if not all(0 < size < float("inf") for size in volume.voxel_mm):
        raise BadInput(f"voxel sizes of {volume.voxel_mm} mm cannot be exported; they must be positive")
