"""Reading measured scans by their content, and writing results."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from equipoise_engine.acquisition import Acquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.ct.anyhdf5 import read_any_hdf5
from equipoise_engine.formats.ct.dataexchange import is_dataexchange, read_dataexchange
from equipoise_engine.formats.ct.dicom_ctpd import is_dicom_ctpd, read_dicom_ctpd
from equipoise_engine.formats.ct.nikon import is_nikon, read_nikon
from equipoise_engine.formats.ct.nxtomo import is_nxtomo, read_nxtomo
from equipoise_engine.formats.ct.skyscan import is_skyscan, is_skyscan_folder, read_skyscan
from equipoise_engine.formats.ct.txrm import is_txrm, read_txrm
from equipoise_engine.formats.hdf5 import is_hdf5, open_file
from equipoise_engine.formats.known import told
from equipoise_engine.formats.mat_variables import is_matlab
from equipoise_engine.formats.matlab import read_matlab
from equipoise_engine.formats.mri.bart import is_bart, is_bart_folder, read_bart
from equipoise_engine.formats.mri.bruker import is_bruker, is_bruker_folder, read_bruker
from equipoise_engine.formats.mri.fastmri import is_fastmri, read_fastmri
from equipoise_engine.formats.mri.ismrmrd_file import is_ismrmrd, read_ismrmrd
from equipoise_engine.formats.mri.twix import read_twix
from equipoise_engine.formats.mri.twix_lines import is_twix
from equipoise_engine.formats.numpyfile import is_numpy, read_numpy
from equipoise_engine.formats.stacks.edf import is_edf
from equipoise_engine.formats.stacks.fits import is_fits
from equipoise_engine.formats.stacks.folder import is_image_folder, read_images
from equipoise_engine.formats.stacks.mrc import is_mrc, read_mrc
from equipoise_engine.formats.stacks.tiffstack import is_tiff
from equipoise_engine.recipe import Known

KINDS = (
    "Data Exchange HDF5, NXtomo, other HDF5 with projections, images (TIFF, EDF, FITS), Nikon, SkyScan and Xradia"
    " scans, MRC tilt series, DICOM-CT-PD, MATLAB fan-beam structures (CT), fastMRI-style HDF5, ISMRMRD, BART, Siemens"
    " and Bruker raw data, MATLAB k-space (MRI) and NumPy arrays"
)
"""The kinds of file that are read, for people."""


@dataclass(frozen=True)
class _Family:
    """How files of a family are recognised and read, and folders that as a whole are one scan of it."""

    recognises: Callable[[Path], bool]
    read: Callable[[Path, Known], Acquisition]
    folder: Callable[[Path], bool] | None = None


def _hdf5(path: Path, known: Known) -> Acquisition:
    file = open_file(path)
    try:
        if is_dataexchange(file, path):
            return read_dataexchange(file, path, known)
        if is_ismrmrd(file, path):
            return read_ismrmrd(file, path, known)
        if is_fastmri(file):
            return read_fastmri(file, path, known)
        if is_nxtomo(file, path):
            return read_nxtomo(file, path, known)
        return read_any_hdf5(file, path, known, KINDS)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, SystemError, MemoryError) as error:
        # Whatever a damaged file makes the library say that was not met with at a known place.
        said = str(error).strip("'\"")
        raise BadInput(f"{path.name}: the HDF5 file is damaged ({said})", "Copy or download it again.") from error


# The first that recognises a file reads it: MATLAB 7.3 files are HDF5 as well.
_FAMILIES = (
    _Family(is_matlab, read_matlab),
    _Family(is_hdf5, _hdf5),
    _Family(is_bart, read_bart, is_bart_folder),
    _Family(is_bruker, read_bruker, is_bruker_folder),
    _Family(is_twix, read_twix),
    _Family(is_nikon, read_nikon),
    _Family(is_skyscan, read_skyscan, is_skyscan_folder),
    _Family(is_txrm, read_txrm),
    _Family(is_mrc, read_mrc),
    _Family(is_numpy, read_numpy),
    _Family(is_dicom_ctpd, read_dicom_ctpd, is_dicom_ctpd),
    _Family(is_edf, read_images),
    _Family(is_fits, read_images),
    # folders of images come last: those of the others may hold images as well
    _Family(is_tiff, read_images, is_image_folder),
)

_OTHERS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xd0\xcf\x11\xe0", "an OLE compound file"),
    (b"%PDF", "a PDF document"),
)


def read(path: Path, known: Known | None = None) -> Acquisition:
    """Return the scan in a file or a folder, recognised by content and not by name.

    Values stay on disk until they are needed where the format allows; the file is neither locked nor written.

    Parameters
    ----------
    known
        What the user knows beside what the files say.

    Raises
    ------
    BadInput
        The file is missing, empty, damaged, or its parts do not fit together.
    Incomplete
        It cannot be understood without something that `known` may tell.
    Unsupported
        It is a file of another kind, or compressed with a filter that is not installed.
    OutOfMemory
        One frame or one slice of it is larger than the free memory.
    """
    path, known = Path(path), known or Known()
    family = next((f for f in _FAMILIES if f.folder is not None and path.is_dir() and f.folder(path)), None)
    if family is None:
        if path.is_dir():
            path = _only_scan(path)
        _check_readable(path)
        family = _family_of(path)
    if family is None:
        raise _other_kind(path)
    return told(family.read(path, known), known)


def _family_of(path: Path) -> _Family | None:
    return next((family for family in _FAMILIES if family.recognises(path)), None)


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
    readable = [p for p in files if os.access(p, os.R_OK) and p.stat().st_size]
    # A pair of files is one scan, named by its values; pictures are scans only where there is nothing else.
    readable = [p for p in readable if p.suffix.lower() != ".hdr" or p.with_suffix(".cfl") not in files]
    families = {p: family for p in readable if (family := _family_of(p)) is not None}
    candidates = [p for p, family in families.items() if family.read is not read_images] or list(families)
    if not candidates:
        raise BadInput(
            f"{folder}: no scan in this folder ({len(files)} files, none of a kind that is read)",
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
