"""Reading measured scans by their content, and writing results."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py

from equipoise_engine.acquisition import Acquisition, CtAcquisition, Match
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.angles import repeated_views
from equipoise_engine.formats.bart import is_bart, read_bart
from equipoise_engine.formats.dataexchange import is_dataexchange, read_dataexchange
from equipoise_engine.formats.fastmri import is_fastmri, read_fastmri
from equipoise_engine.formats.hdf5 import is_hdf5, open_file, read_text, try_find, walk
from equipoise_engine.formats.matlab import is_matlab, read_matlab
from equipoise_engine.formats.nxtomo import is_nxtomo, read_nxtomo
from equipoise_engine.formats.sinogram import AngleRange, is_tiff, read_sinogram
from equipoise_engine.formats.twix import is_twix, read_twix
from equipoise_engine.geometry import LARGEST_TILT_RAD, Cartesian, ConeBeam, FanBeam, ParallelBeam

KINDS = (
    "Data Exchange HDF5, NXtomo, MATLAB fan-beam structures and TIFF sinograms (CT), fastMRI-style HDF5, BART, Siemens"
    " raw data and MATLAB k-space (MRI)"
)
"""The kinds of file that are read, for people."""


@dataclass(frozen=True)
class Beam:
    """Lengths of a diverging beam.

    Parameters
    ----------
    source_axis_mm, source_detector_mm
        Distance from the source to the rotation axis and to the detector.
    pixel_mm
        Side of a detector element.
    """

    source_axis_mm: float
    source_detector_mm: float
    pixel_mm: float


@dataclass(frozen=True)
class Known:
    """What the user knows about a scan that its file may not say.

    Parameters
    ----------
    centre_px
        Detector column of the rotation axis.
    angles
        Range of the projection angles, for files that hold none.
    matrix
        Rows and columns of the image, for k-space along a trajectory.
    beam
        Lengths of a diverging beam, for files of projections that do not hold them: of one detector row a fan, of
        several a cone whose source is level with their middle.
    """

    centre_px: float | None = None
    angles: AngleRange | None = None
    matrix: tuple[int, int] | None = None
    beam: Beam | None = None


@dataclass(frozen=True)
class _Family:
    """How files of a family are recognised and read, and what of `Known` they take beside centre and beam."""

    recognises: Callable[[Path], bool]
    read: Callable[[Path, Known], Acquisition]
    takes: frozenset[str] = frozenset()


def _hdf5(path: Path, known: Known) -> Acquisition:
    file = open_file(path)
    try:
        if is_dataexchange(file, path):
            return read_dataexchange(file, path, known.centre_px)
        if is_fastmri(file):
            return read_fastmri(file, path)
        if is_nxtomo(file, path):
            return read_nxtomo(file, path, known.centre_px)
        raise _other_hdf5(file, path)
    except (OSError, RuntimeError, KeyError) as error:
        # Whatever a damaged file makes the library say that was not met with at a known place.
        raise BadInput(f"{path.name}: the HDF5 file is damaged ({error})", "Copy or download it again.") from error


# The first that recognises a file reads it: MATLAB 7.3 files are HDF5 as well.
_FAMILIES = (
    _Family(
        is_matlab,
        lambda path, known: read_matlab(path, known.centre_px, matrix=known.matrix),
        frozenset({"matrix"}),
    ),
    _Family(is_hdf5, _hdf5),
    _Family(is_bart, lambda path, known: read_bart(path)),
    _Family(is_twix, lambda path, known: read_twix(path)),
    _Family(
        is_tiff,
        lambda path, known: read_sinogram(path, known.centre_px, angles=known.angles),
        frozenset({"angles"}),
    ),
)

_OTHERS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xd0\xcf\x11\xe0", "an OLE compound file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF document"),
)


def read(path: Path, *, centre_px: float | None = None, known: Known | None = None) -> Acquisition:
    """Return the scan in a file, or the only one in a folder, recognised by content and not by name.

    Values stay on disk until they are needed where the format allows; the file is neither locked nor written.

    Parameters
    ----------
    centre_px
        Detector column of the rotation axis, where it is known.
    known
        What else is known; its centre is used where `centre_px` is None.

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
    known = known or Known()
    if centre_px is not None:
        known = replace(known, centre_px=centre_px)
    if path.is_dir():
        path = _only_scan(path)
    _check_readable(path)
    family = _family_of(path)
    if family is None:
        raise _other_kind(path)
    for name, given in (("angles", known.angles), ("matrix", known.matrix)):
        if given is not None and name not in family.takes:
            raise BadInput(f"{path.name}: a file of this kind tells its own {name}; others are not taken")
    scan = family.read(path, known)
    if known.matrix is not None and isinstance(scan.geometry, Cartesian | FanBeam):
        raise BadInput(f"{path.name}: the size of its images follows from its samples; another one is not taken")
    return scan if known.beam is None else _diverging(scan, known.beam)


def _diverging(scan: Acquisition, beam: Beam) -> CtAcquisition:
    """Return a scan with a fan or a cone in place of the parallel beam that its file was taken to have."""
    if not isinstance(scan, CtAcquisition):
        raise BadInput(f"{scan.path.name}: an MRI scan has no source and no detector", "Leave the distances out.")
    lengths = (beam.source_axis_mm, beam.source_detector_mm, beam.pixel_mm)
    rows, old = scan.shape[1], scan.geometry
    if not isinstance(old, ParallelBeam):
        raise BadInput(f"{scan.path.name}: the file tells the distances of its beam; others are not taken")
    half_fan = math.atan(0.5 * scan.shape[2] * beam.pixel_mm / max(beam.source_detector_mm, 1e-9))
    if half_fan > LARGEST_TILT_RAD:
        raise BadInput(
            f"{scan.path.name}: {scan.shape[2]} columns of {beam.pixel_mm:g} mm at {beam.source_detector_mm:g} mm would"
            f" span a fan of {2 * math.degrees(half_fan):.0f} degrees",
            "Check the side of a detector element, in mm.",
        )
    geometry: FanBeam | ConeBeam
    if rows == 1:
        geometry = FanBeam(old.angle_rad, *lengths, old.centre_px)
    else:
        geometry = ConeBeam(old.angle_rad, *lengths, beam.pixel_mm, (rows - 1) / 2, old.centre_px)
    told = f"source to axis {lengths[0]:g} mm, to detector {lengths[1]:g} mm, element {lengths[2]:g} mm"
    kind = "one detector row: a fan" if rows == 1 else f"{rows} detector rows: a cone"
    # what was said about opposite views holds for parallel beams only
    warnings = tuple(text for text in scan.warnings if text not in repeated_views(old.angle_rad))
    match = Match("beam", "given by the user", (), f"{told}; {kind}")
    return replace(scan, geometry=geometry, matched=(*scan.matched, match), warnings=warnings)


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
    candidates = [p for p, family in families.items() if family.recognises is not is_tiff] or list(families)
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
