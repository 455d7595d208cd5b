"""Image volumes to compare with: which files are never raw scans, and what is in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import is_hdf5
from equipoise_engine.formats.mat_variables import is_matlab
from equipoise_engine.formats.references.array_files import (
    is_numpy_array,
    is_result,
    read_hdf5_images,
    read_matlab_images,
    read_numpy_images,
    read_tiff,
)
from equipoise_engine.formats.references.dicom_header import is_dicom_image, is_dicom_series
from equipoise_engine.formats.references.dicom_series import read_dicom
from equipoise_engine.formats.references.nifti_file import is_nifti, read_nifti
from equipoise_engine.formats.references.nrrd_file import is_nrrd, read_nrrd
from equipoise_engine.formats.stacks.mrc import is_mrc, is_mrc_volume, read_mrc_volume
from equipoise_engine.formats.stacks.tiffstack import is_tiff
from equipoise_engine.progress import Watch
from equipoise_engine.recipe import Known
from equipoise_engine.volume import Volume

REFERENCE_KINDS = "DICOM, NIfTI, NRRD, MRC, TIFF, HDF5, MATLAB and NumPy arrays"
"""The kinds of image volumes that are read, for people."""


def is_reference(path: Path, known: Known | None = None) -> bool:
    """Whether a file or a folder is of a kind that is no raw scan: DICOM, NIfTI, NRRD or a result of ours.

    An MRC volume without angles is one unless something is known of it, which only scans have.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return is_dicom_series(path)
        if not path.is_file() or not os.access(path, os.R_OK) or path.stat().st_size == 0:
            return False
        # DICOM first: its preamble may be that of a TIFF file
        if is_dicom_image(path) or is_nifti(path) or is_nrrd(path) or is_result(path):
            return True
        return known in (None, Known()) and is_mrc_volume(path)
    except OSError:
        return False


def read_reference(path: Path, watch: Watch) -> Volume:
    """Return the image volume in a file, or of the series that it belongs to, or in a folder.

    Its provenance tells "format", the "unit" of the values, and in "notes", a list of sentences, what was left out.

    Raises
    ------
    BadInput
        The file is missing, empty or damaged, or it is not clear which images are meant.
    Unsupported
        It holds no image, or one that is coded in a way that is not read.
    OutOfMemory
        The volume is larger than the free memory.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{path}: there is no such file", "Check the name, and that the drive is connected.")
    if not os.access(path, os.R_OK):
        raise BadInput(f"{path}: no permission to read it", "Ask its owner for permission.")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite
            return _read_folder(path, watch) if path.is_dir() else _read_file(path, watch)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})", "Check the drive.") from error


def _read_folder(path: Path, watch: Watch) -> Volume:
    # a folder of both is one of DICOM with pictures of it
    if not is_dicom_series(path) and any(p.suffix.lower() in (".tif", ".tiff") for p in path.iterdir()):
        return read_tiff(path, watch)
    return read_dicom(path, watch)


def _read_file(path: Path, watch: Watch) -> Volume:
    if not path.is_file():
        raise BadInput(f"{path}: neither a file nor a folder")
    if path.stat().st_size == 0:
        raise BadInput(f"{path.name}: the file is empty (0 bytes)", "Copy or download it again.")
    if is_dicom_image(path):
        return read_dicom(path, watch)
    if is_nifti(path):
        return read_nifti(path)
    if is_nrrd(path):
        return read_nrrd(path)
    if is_mrc(path):
        return read_mrc_volume(path)
    if is_tiff(path):
        return read_tiff(path, watch)
    if is_matlab(path):
        return read_matlab_images(path)
    if is_hdf5(path):
        return read_hdf5_images(path, watch)
    if is_numpy_array(path):
        return read_numpy_images(path)
    raise Unsupported(f"{path.name}: holds no image that can be read", f"Kinds that are read: {REFERENCE_KINDS}.")
