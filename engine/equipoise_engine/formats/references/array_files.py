"""Image volumes as arrays: TIFF files and folders of them, HDF5, MATLAB and NumPy files.

What this program wrote itself is known by what it says about itself, and comes back as it was.
"""

from __future__ import annotations

import json
import math
import tokenize
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from equipoise_engine.acquisition import Samples
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.hdf5 import (
    Stored,
    attribute,
    check_dataset,
    check_memory,
    is_hdf5,
    numeric_sources,
    open_file,
    read_text,
    try_find,
)
from equipoise_engine.formats.mat_variables import DAMAGE, load, variables_of
from equipoise_engine.formats.results.result import PROGRAM
from equipoise_engine.formats.stacks.series import images_of, natural
from equipoise_engine.formats.stacks.tiffstack import images_of_tiff, is_tiff, result_text
from equipoise_engine.progress import Progress, Watch
from equipoise_engine.volume import Volume

NUMPY_START = b"\x93NUMPY"
SMALLEST = 8
"""Rows and columns that an image has at least, to be told from other arrays."""
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3, "µm": 1e-3, "\\u00b5m": 1e-3}
_MILLIMETRES |= {"micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3, "nm": 1e-6}
_HDF5_NAMES = ("reconstruction_rss", "reconstruction_esc", "reconstruction", "reconstruction/data")
_MATLAB_KINDS = frozenset({"double", "single", "logical"} | {f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)})
_CENTIMETRE = 3
_NUMPY_DAMAGE = (
    *(ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, RuntimeError),
    tokenize.TokenError,
)
# Whatever HDF5 says of damage that was not met with at a known place.
_HDF5_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, SystemError, MemoryError)


def is_result(path: Path) -> bool:
    """Whether this program wrote a TIFF or HDF5 file as a result."""
    if is_tiff(path):
        return bool(result_text(path))
    if not is_hdf5(path):
        return False
    try:
        with open_file(path) as file:
            return bool(_hdf5_text(file, path))
    except (BadInput, *_HDF5_DAMAGE):
        return False


def read_tiff(path: Path, watch: Watch) -> Volume:
    """Return the image volume in a TIFF file, or of the TIFF files in a folder.

    Voxel sizes are taken from what ImageJ or this program wrote, or from a resolution in centimetres: one in inches is
    that of a screen. Raises as `images_of_tiff`.
    """
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if _is_image(p)), key=lambda p: natural(p.name))
        if not files:
            raise BadInput(f"{path}: no image in this folder", "Choose another folder.")
        samples = images_of(files, _images)
    else:
        files, samples = [path], _images(path)
    data = _taken(samples, files[0], watch)
    text = result_text(files[0])
    if text:
        return _as_written(data, text, path, "TIFF")
    voxel, slope, intercept = _tiff_scale(files[0])
    if slope != 1.0 or intercept != 0.0:
        data *= np.float32(slope)
        data += np.float32(intercept)
    return _volume(data, path, "TIFF", voxel)


def _is_image(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.suffix.lower() in _TIFF_SUFFIXES


def _images(path: Path) -> Samples:
    return images_of_tiff(path, results=True)


def _taken(samples: Samples, path: Path, watch: Watch) -> NDArray[np.float32]:
    """Return images `(slice, y, x)` read one by one."""
    shape = tuple(int(n) for n in samples.shape)
    check_memory(4 * math.prod(shape), f"the volume {shape} of {path.name}")
    data = np.empty(shape, dtype=np.float32)
    for index in range(shape[0]):
        data[index] = samples[index]
        watch(Progress("read", index + 1, shape[0]))
    return data


def _tiff_scale(path: Path) -> tuple[tuple[float, float, float] | None, float, float]:
    """Return the voxel size `(slice, y, x)` in mm where it is said, and slope and intercept of the values."""
    try:
        with tifffile.TiffFile(path, is_ome=False) as file:
            page: Any = file.pages[0]
            text = dict(file.imagej_metadata or {})
            across, down = (_ratio(page.tags.valueof(code)) for code in (282, 283))
            unit = int(page.tags.valueof(296) or 0)
    except Exception:
        return None, 1.0, 1.0
    mm = _MILLIMETRES.get(str(text.get("unit", "")).lower()) if text else (10.0 if unit == _CENTIMETRE else None)
    voxel = None
    if mm is not None and across and down:
        depth = _finite(text.get("spacing")) or (1.0 / down)
        voxel = (abs(depth) * mm, mm / down, mm / across)
    slope, intercept = 1.0, 0.0
    # 0 stands for a straight line
    if str(text.get("cf", "")) == "0" and (found := _finite(text.get("c1"))):
        slope, intercept = found, _finite(text.get("c0")) or 0.0
    return voxel, slope, intercept


def _ratio(value: Any) -> float:
    """Return a resolution as elements per unit; 0 where there is none."""
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return max(float(value[0]) / float(value[1]), 0.0)
    return 0.0


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_hdf5_images(path: Path, watch: Watch) -> Volume:
    """Return the image volume in an HDF5 file.

    It is what this program wrote, a reconstruction by its usual names, or the only array of real images.

    Raises
    ------
    BadInput
        The file is damaged, or has several arrays that may be meant.
    OutOfMemory
        The volume is larger than the free memory.
    """
    file = open_file(path)
    try:
        text = _hdf5_text(file, path)
        names = ("entry/data/data",) if text else _HDF5_NAMES
        item = next((found for name in names if (found := try_find(file, name, path)) is not None), None)
        if not isinstance(item, h5py.Dataset):
            item = _only_images(file, path)
        dataset = check_dataset(item, path, kinds="iufc", axes=(2, 3))
        check_memory(int(np.prod(dataset.shape, dtype=np.float64)) * 4, f"the volume {dataset.shape} of {path.name}")
        stored = Stored(dataset, path, add_axis=0 if len(dataset.shape) == 2 else None)
        data = np.empty(stored.shape, dtype=np.float32)
        for index in range(stored.shape[0]):
            values = stored[index]
            data[index] = np.abs(values) if values.dtype.kind == "c" else values
            watch(Progress("read", index + 1, stored.shape[0]))
    except _HDF5_DAMAGE as error:
        said = str(error).strip("'\"")
        raise BadInput(f"{path.name}: the HDF5 file is damaged ({said})", "Copy or download it again.") from error
    finally:
        file.close()
    return _as_written(data, text, path, "HDF5") if text else _volume(data, path, "HDF5", None)


def _hdf5_text(file: h5py.File, path: Path) -> str:
    """Return what this program wrote about a volume, as JSON text; empty where it did not."""
    program = try_find(file, "entry/reconstruction/program", path)
    text = try_find(file, "entry/reconstruction/parameters/provenance", path)
    if not isinstance(program, h5py.Dataset) or not isinstance(text, h5py.Dataset):
        return ""
    return read_text(text, path) if read_text(program, path) == PROGRAM else ""


def _only_images(file: h5py.File, path: Path) -> h5py.Dataset | h5py.Group:
    default = attribute(file, "default")
    group = try_find(file, default, path) if default else None
    if isinstance(group, h5py.Group) and (inner := attribute(group, "default")):
        group = try_find(group, inner, path)
    if isinstance(group, h5py.Group) and (signal := attribute(group, "signal")):
        found = try_find(group, signal, path)
        if found is not None:
            return found
    images = [s for s in numeric_sources(file, path) if len(s.shape) in (2, 3) and min(s.shape[-2:]) >= SMALLEST]
    if len(images) == 1 and (found := try_find(file, images[0].name, path)) is not None:
        return found
    said = ", ".join(f"{source.name} {source.shape}" for source in images[:6])
    raise BadInput(
        f"{path.name}: {len(images) or 'no'} arrays that may be images" + (f" ({said})" if said else ""),
        "Save the images alone in a file.",
    )


def read_matlab_images(path: Path) -> Volume:
    """Return the image volume in a MATLAB file, its only array of images `(y, x)` or `(y, x, slice)`.

    Raises
    ------
    BadInput
        The file is damaged, or has none or several such arrays.
    OutOfMemory
        The array is larger than the free memory.
    """
    try:
        variables = variables_of(path)
        images = [
            v for v in variables if v.kind in _MATLAB_KINDS and len(v.shape) in (2, 3) and min(v.shape[:2]) >= SMALLEST
        ]
        if len(images) != 1:
            said = ", ".join(str(variable) for variable in variables[:8]) or "none"
            raise BadInput(
                f"{path.name}: {len(images) or 'no'} arrays that may be images; the variables are {said}",
                "Save the images alone in a file.",
            )
        check_memory(int(np.prod(images[0].shape, dtype=np.float64)) * 24, f"{images[0].name} of {path.name}")
        values = np.asarray(load(path, [images[0].name])[images[0].name])
    except (*DAMAGE, MemoryError) as error:
        raise BadInput(f"{path.name}: the MATLAB file is damaged ({error})", "Copy or download it again.") from error
    if values.ndim == 3:
        values = np.moveaxis(values, 2, 0)
    return _volume(_real(values, path), path, "MATLAB", None)


def is_numpy_array(path: Path) -> bool:
    """Whether a file begins as those of single NumPy arrays do."""
    with path.open("rb") as stream:
        return stream.read(len(NUMPY_START)) == NUMPY_START


def read_numpy_images(path: Path) -> Volume:
    """Return the image volume in a file of one NumPy array `(y, x)` or `(slice, y, x)`.

    Raises
    ------
    BadInput
        The file is damaged, or its array has other axes.
    OutOfMemory
        The array is larger than the free memory.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except _NUMPY_DAMAGE as error:
        raise BadInput(f"{path.name}: the NumPy array is damaged ({str(error)[:200]})", "Save it again.") from error
    check_memory(12 * values.size, f"the array {values.shape} of {path.name}")
    return _volume(_real(values, path), path, "NumPy", None)


def _real(values: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """Return images `(slice, y, x)` of real numbers, or of the magnitude of complex ones."""
    if values.ndim not in (2, 3) or values.size == 0 or values.dtype.kind not in "iufcb":
        raise BadInput(
            f"{path.name}: an array of shape {values.shape} and type {values.dtype}; images (y, x) or (slice, y, x) of"
            " numbers are read",
        )
    values = values.reshape((1,) * (3 - values.ndim) + values.shape)
    return np.ascontiguousarray(np.abs(values) if values.dtype.kind == "c" else values, dtype=np.float32)


def _volume(data: NDArray[np.float32], path: Path, kind: str, voxel_mm: tuple[float, float, float] | None) -> Volume:
    known = voxel_mm is not None and all(0 < size < math.inf for size in voxel_mm)
    provenance = {"method": "reference", "reference": path.name, "format": kind, "unit": "a.u."}
    return Volume(data, voxel_mm if known and voxel_mm is not None else (1.0, 1.0, 1.0), "", known, provenance)


def _as_written(data: NDArray[np.float32], text: str, path: Path, kind: str) -> Volume:
    """Return a volume with what this program wrote about it."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        return _volume(data, path, kind, None)
    sizes = said.get("voxel_mm")
    several = [_finite(size) for size in sizes] if isinstance(sizes, list) and len(sizes) == 3 else [None]
    voxel = [size for size in several if size is not None and size > 0]
    first, modality, unit = said.get("first_slice"), said.get("modality"), said.get("unit")
    provenance: dict[str, Any] = {"method": "reference", "reference": path.name, "format": kind}
    provenance["unit"] = unit if isinstance(unit, str) else "a.u."
    if isinstance(said.get("provenance"), dict):
        provenance["result"] = said["provenance"]
    return Volume(
        data,
        (voxel[0], voxel[1], voxel[2]) if len(voxel) == 3 else (1.0, 1.0, 1.0),
        modality if modality in ("ct", "mri") else "",
        len(voxel) == 3 and said.get("calibrated") is True,
        provenance,
        first if isinstance(first, int) and first >= 0 else 0,
    )
