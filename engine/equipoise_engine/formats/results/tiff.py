"""Writer for TIFF: one multi-page float32 file with calibrated voxel size, as ImageJ reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.atomic import new_file, sync
from equipoise_engine.formats.results.result import check_volume, describe_json
from equipoise_engine.progress import Progress, Watch
from equipoise_engine.volume import Volume

MAX_CLASSIC_BYTES = 4_000_000_000
"""Volumes above this are written as BigTIFF, which ImageJ opens through Bio-Formats only."""


def write_tiff(volume: Volume, path: Path, watch: Watch) -> list[Path]:
    """Write a volume as one float32 TIFF file, read it back and compare; return its path.

    Up to 4 GB the file is an ImageJ hyperstack: voxel size in mm, and settings and provenance as JSON under
    Image > Show Info. Above, it is a BigTIFF with the same JSON in its description.

    Raises
    ------
    BadInput
        The target cannot be written, or the file read back differs.
    """
    check_volume(volume)
    path = Path(path)
    data = np.ascontiguousarray(volume.data, dtype=np.float32)
    slices = data.shape[0]
    total = 2 * slices

    def pages() -> Iterator[NDArray[np.float32]]:
        for index in range(slices):
            yield data[index]
            watch(Progress("write", index + 1, total))

    text = describe_json(volume)
    with new_file(path, data.nbytes + len(text) * 2 + 1024 * slices) as temporary:
        with tifffile.TiffWriter(temporary, **_kind(data)) as writer:
            writer.write(pages(), shape=data.shape, dtype=data.dtype, **_tags(volume, data, text))
        sync(temporary)
        _compare(temporary, path, data, watch)
    return [path]


def _kind(data: NDArray[np.float32]) -> dict[str, Any]:
    if data.nbytes > MAX_CLASSIC_BYTES:
        return {"bigtiff": True}
    return {"imagej": True}


def _tags(volume: Volume, data: NDArray[np.float32], text: str) -> dict[str, Any]:
    """Return the arguments that make TIFF tags: resolution, and the description in the form of the kind."""
    depth, height, width = volume.voxel_mm
    if data.nbytes > MAX_CLASSIC_BYTES:
        tags: dict[str, Any] = {"photometric": "minisblack", "description": text, "metadata": None}
        if volume.calibrated:
            tags |= {"resolution": (10.0 / width, 10.0 / height), "resolutionunit": "CENTIMETER"}
        return tags
    finite = data[np.isfinite(data)]
    metadata: dict[str, Any] = {
        "axes": "ZYX",
        "spacing": depth,
        "unit": "mm" if volume.calibrated else "pixel",
        "Info": text,
    }
    if finite.size:
        metadata |= {"min": float(finite.min()), "max": float(finite.max())}
    # ImageJ takes pixels per unit from these two and the unit from the description.
    return {
        "photometric": "minisblack",
        "resolution": (1.0 / width, 1.0 / height),
        "resolutionunit": "NONE",
        "metadata": metadata,
    }


def _compare(temporary: Path, path: Path, data: NDArray[np.float32], watch: Watch) -> None:
    slices = data.shape[0]
    with tifffile.TiffFile(temporary) as file:
        if len(file.pages) != slices:
            raise BadInput(f"{path}: read back {len(file.pages)} pages instead of {slices}", "Try another drive.")
        for index in range(slices):
            page = file.pages[index].asarray()
            if page.shape != data.shape[1:] or not np.array_equal(page, data[index], equal_nan=True):
                raise BadInput(f"{path}: slice {index} reads back differently", "The drive is faulty; try another.")
            watch(Progress("write", slices + index + 1, 2 * slices))
