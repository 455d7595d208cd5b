"""Reading measured scans by their content, and writing results."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from equipoise_engine.acquisition import Acquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.dataexchange import is_dataexchange, read_dataexchange
from equipoise_engine.formats.fastmri import is_fastmri, read_fastmri
from equipoise_engine.formats.hdf5 import is_hdf5, open_file, read_text, try_find, walk
from equipoise_engine.formats.nxtomo import is_nxtomo, read_nxtomo

KINDS = "Data Exchange HDF5 and NXtomo (CT), fastMRI-style HDF5 (MRI)"
"""The kinds of file that are read, for people."""

_OTHERS = (
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"II+\x00", "a BigTIFF image"),
    (b"MM\x00+", "a BigTIFF image"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"MATLAB 5.0", "a MATLAB 5 file"),
    (b"\xd0\xcf\x11\xe0", "an OLE compound file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF document"),
)


def read(path: Path, *, centre_px: float | None = None) -> Acquisition:
    """Return the scan in a file, or the only one in a folder, recognised by content and not by name.

    Values stay on disk until they are needed; the file is neither locked nor written.

    Parameters
    ----------
    centre_px
        Detector column of the rotation axis, where it is known.

    Raises
    ------
    BadInput
        The file is missing, empty, damaged, or its parts do not fit together.
    Unsupported
        It is a file of another kind, or compressed with a filter that is not installed.
    OutOfMemory
        One frame or one slice of it is larger than the free memory.
    """
    path = Path(path)
    if path.is_dir():
        path = _only_scan(path)
    _check_readable(path)
    if not is_hdf5(path):
        raise _other_kind(path)
    file = open_file(path)
    try:
        if is_dataexchange(file, path):
            return read_dataexchange(file, path, centre_px)
        if is_fastmri(file):
            return read_fastmri(file, path)
        if is_nxtomo(file, path):
            return read_nxtomo(file, path, centre_px)
        raise _other_hdf5(file, path)
    except (OSError, RuntimeError, KeyError) as error:
        # Whatever a damaged file makes the library say that was not met with at a known place.
        raise BadInput(f"{path.name}: the HDF5 file is damaged ({error})", "Copy or download it again.") from error


def _check_readable(path: Path) -> None:
    if not path.exists():
        raise BadInput(f"{path}: there is no such file", "Check the name, and that the drive is connected.")
    if not path.is_file():
        raise BadInput(f"{path}: neither a file nor a folder")
    if not os.access(path, os.R_OK):
        raise BadInput(f"{path}: no permission to read it", "Ask its owner for permission.")
    if path.stat().st_size == 0:
        raise BadInput(f"{path.name}: the file is empty (0 bytes)", "Copy or download it again.")


def _only_scan(folder: Path) -> Path:
    """Return the one file of a folder that may hold a scan."""
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    except OSError as error:
        raise BadInput(f"{folder}: the folder cannot be listed ({error.strerror})") from error
    candidates = [p for p in files if os.access(p, os.R_OK) and p.stat().st_size and is_hdf5(p)]
    if not candidates:
        raise BadInput(
            f"{folder}: no scan in this folder ({len(files)} files, none of them HDF5)",
            f"Kinds that are read: {KINDS}.",
        )
    if len(candidates) > 1:
        names = ", ".join(p.name for p in candidates[:5]) + (", ..." if len(candidates) > 5 else "")
        raise BadInput(f"{folder}: {len(candidates)} files that may be scans ({names})", "Open one of them.")
    return candidates[0]


def _other_kind(path: Path) -> Unsupported:
    with path.open("rb") as stream:
        start = stream.read(132)
    kind = next((name for magic, name in _OTHERS if start.startswith(magic)), "")
    if start[128:132] == b"DICM":
        kind = "a DICOM image"
    said = f"is {kind}" if kind else f"is of an unknown kind (it starts with {start[:8]!r})"
    return Unsupported(f"{path.name}: {said}, not a scan that can be read", f"Kinds that are read: {KINDS}.")


def _other_hdf5(file: h5py.File, path: Path) -> Unsupported:
    """Say what an HDF5 file is, as far as it tells."""
    definitions: list[str] = []
    names: list[str] = []
    for where in walk(file, path):
        if where.count("/") == 1:
            names.append(where[1:])
        item = try_find(file, where, path) if where.endswith("/definition") else None
        if isinstance(item, h5py.Dataset) and item.size == 1:
            definitions.append(read_text(item, path))
    if definitions:
        said = f"is a NeXus file of kind {', '.join(sorted(set(definitions)))}, not tomography"
    elif isinstance(try_find(file, "dataset/xml", path), h5py.Dataset):
        said = "is an ISMRMRD file"
    else:
        said = f"is an HDF5 file of an unknown kind (it holds {', '.join(names[:6]) or 'nothing'})"
    return Unsupported(f"{path.name}: {said}", f"Kinds that are read: {KINDS}.")
