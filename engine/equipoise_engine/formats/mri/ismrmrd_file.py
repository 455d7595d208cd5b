"""Reader for ISMRMRD files, also called MRD: the vendors' raw data as HDF5.

Source: Inati et al. 2017, ISMRM Raw data format, doi:10.1002/mrm.26089; https://ismrmrd.readthedocs.io.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats.hdf5 import check_memory, find
from equipoise_engine.formats.heap import Table
from equipoise_engine.formats.mri.kspace import check_finite
from equipoise_engine.formats.mri.mrd_acquisitions import (
    COUNTERS,
    DAMAGE,
    Acquisitions,
    Sorted,
    acquisitions_of,
    scan_groups,
    sorted_out,
)
from equipoise_engine.formats.mri.mrd_cartesian import along_lines
from equipoise_engine.formats.mri.mrd_header import header_root
from equipoise_engine.formats.mri.mrd_part import Part, own, shape_of
from equipoise_engine.formats.mri.mrd_trajectory import along_trajectory
from equipoise_engine.formats.mri.parts import chosen_part, noise_wanted, part_warnings, parts
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.recipe import Known, Source

_CARTESIAN = ("cartesian", "epi", "")


def is_ismrmrd(file: h5py.File, path: Path) -> bool:
    """Whether a group at the top of a file holds a header called `xml`, or readouts."""
    return bool(scan_groups(file, path))


def read_ismrmrd(file: h5py.File, path: Path, known: Known) -> MriAcquisition:
    """Return the scan in an open file; its samples are read when needed.

    Cartesian readouts are laid out with what they are oversampled removed, averages averaged, readouts of the other
    direction turned; three-dimensional ones become slices. Of contrasts, phases, repetitions and sets, the first is
    taken, or the one that is told as the source of the k-space: "repetition 2". Of several scans in a file, it is the
    first of an image unless the name of another one is told; noise is taken of any.

    Raises
    ------
    BadInput
        The file is damaged, or its parts do not fit together.
    Unsupported
        It holds images, compressed samples, or a three-dimensional trajectory.
    OutOfMemory
        One slice, or one three-dimensional scan, does not fit into the memory.
    """
    try:
        return _read(file, path, known)
    except DAMAGE as error:
        raise BadInput(
            f"{path.name}: the ISMRMRD file is damaged ({type(error).__name__}: {error})",
            "Copy or export the file again.",
        ) from error


@dataclass(frozen=True)
class _Scan:
    """One of the scans in a file: its group, and its readouts sorted out."""

    group: h5py.Group
    acquisitions: Acquisitions
    found: Sorted

    @property
    def name(self) -> str:
        """Name of its group."""
        return str(self.group.name).lstrip("/")


def _scans(file: h5py.File, path: Path, told: str) -> tuple[list[_Scan], str]:
    """Return the scans in a file, the one to read first, and what is told of its parts.

    Raises BadInput or Unsupported where the only one, or the one that is told, cannot be read.
    """
    groups = scan_groups(file, path)
    words = [word.strip() for word in told.split(",")]
    names = [str(group.name).lstrip("/") for group in groups]
    wanted = next((word for word in words if word in names), None)
    scans = []
    for name, group in zip(names, groups, strict=True):
        try:
            scans.append(_sorted_scan(group, path))
        except (EquipoiseError, *DAMAGE):
            if name == wanted:
                raise
    if not scans:
        scans.append(_sorted_scan(groups[0], path))  # which says what is wrong with it
    scans.sort(key=lambda scan: scan.name != wanted if wanted is not None else not scan.found.imaging.size)
    return scans, ", ".join(word for word in words if word and word != wanted)


def _sorted_scan(group: h5py.Group, path: Path) -> _Scan:
    acquisitions = acquisitions_of(group, path)
    return _Scan(group, acquisitions, sorted_out(acquisitions.heads, path))


def _header(group: h5py.Group, path: Path) -> ElementTree.Element:
    """Return the header of a scan."""
    xml = find(group, "xml", path)
    if xml is None:
        raise BadInput(
            f"{path.name}: the header {group.name}/xml is missing", "Export the file again, with its header."
        )
    told = isinstance(xml, h5py.Dataset) and xml.shape in ((), (1,))
    root = header_root(Table(xml, path).text(0).decode("utf-8", "replace")) if told else None
    if root is None:
        raise BadInput(f"{path.name}: the header {group.name}/xml cannot be read", "Export the file again.")
    return root


def _read(file: h5py.File, path: Path, known: Known) -> MriAcquisition:
    told = told_roles(known, path, ("kspace", "noise"))
    scans, told_part = _scans(file, path, told.get("kspace", ""))
    scan = _read_one(path, known, scans, told_part, noise_wanted(told, path))
    if len(scans) == 1:
        return scan
    others = ", ".join(other.name for other in scans[1:6]) + (", ..." if len(scans) > 6 else "")
    reason = f"{others}; their names may be told as the source of the k-space"
    warnings = []
    if any(other.found.imaging.size for other in scans[1:]):
        warnings.append(f"The file has {len(scans)} scans; {scans[0].name} is read.")
    return replace(
        scan,
        matched=(*scan.matched, Match("not used", "other scans of the file", (len(scans) - 1,), reason)),
        warnings=(*warnings, *scan.warnings),
        sources=(
            *(Source(one.name, (one.acquisitions.heads.size,), "readouts") for one in scans),
            *scan.sources,
        ),
    )


def _read_one(path: Path, known: Known, scans: list[_Scan], told_part: str, with_noise: bool) -> MriAcquisition:
    """Return the first of the scans of a file."""
    part, counters = _part(path, scans, told_part)
    if with_noise:
        part = _with_noise(part, scans)
    told_slice = "slice" in told_part.lower()
    if part.positioned:
        scan = along_trajectory(part, part.chosen["slice"] if told_slice else None, known.matrix)
    else:
        scan = along_lines(part, known.keep_oversampling)
    repeated = {name: values for name, values in counters.items() if name != "slice" or told_slice}
    warnings = part_warnings(repeated, part.chosen)
    trajectory = _trajectory_kind(part.root, part.number)
    if not part.positioned and trajectory not in _CARTESIAN:
        warnings.append(f"The header calls the trajectory {trajectory!r}; without positions, it is taken as Cartesian.")
    return replace(scan, warnings=(*warnings, *scan.warnings), sources=parts(counters, scan.shape))


def _part(path: Path, scans: list[_Scan], told: str) -> tuple[Part, dict[str, set[int]]]:
    """Return the part of the first scan that is told, else its first, and the values that its counters take."""
    acquisitions, found = scans[0].acquisitions, scans[0].found
    heads, root = acquisitions.heads, _header(scans[0].group, path)
    if not found.imaging.size:
        said = ", ".join(f"{count} of {name}" for name, count in sorted(found.others.items()) if count)
        raise BadInput(f"{path.name}: {heads.size} readouts, none of which is of an image ({said or 'noise only'})")
    spaces = heads["encoding_space_ref"]
    number = int(spaces[found.imaging[0]])
    imaging = found.imaging[spaces[found.imaging] == number]
    trajectory = _trajectory_kind(root, number)
    positioned = trajectory not in _CARTESIAN and bool(heads["trajectory_dimensions"][imaging].any())
    if not positioned and trajectory in ("radial", "goldenangle", "spiral"):
        raise Unsupported(f"{path.name}: a {trajectory} scan whose readouts do not tell where they lie in k-space")
    names = (*COUNTERS, "slice") if positioned else COUNTERS
    counters = {name: {int(n) for n in np.unique(heads["idx"][name][imaging])} for name in names}
    chosen = chosen_part(told, counters, path, sorted(scan.name for scan in scans) if len(scans) > 1 else ())
    imaging = own(heads, imaging, number, chosen)
    if not imaging.size:
        raise BadInput(f"{path.name}: no imaging readouts belong to {told or 'the first part'}")
    coils, samples, centre = shape_of(heads, imaging, path)
    part = Part(
        path=path,
        acquisitions=acquisitions,
        found=found,
        root=root,
        number=number,
        chosen=chosen,
        positioned=positioned,
        imaging=imaging,
        coils=coils,
        samples=samples,
        centre=centre,
    )
    return part, counters


def _with_noise(part: Part, scans: list[_Scan]) -> Part:
    """Return a part with the noise of its coils, of the first scan that measured it."""
    dwell = float(part.heads["sample_time_us"][part.imaging[0]])
    for scan in scans:
        noise = _noise(scan, dwell, part.coils, part.path)
        if noise is not None:
            own_scan = scan is scans[0]
            return replace(
                part, noise=noise, noise_source="noise measurements" + ("" if own_scan else f" of {scan.name}")
            )
    return part


def _noise(scan: _Scan, image: float, coils: int, path: Path) -> NDArray[np.complex64] | None:
    """Return the noise of the coils `(coil, sample)` at the bandwidth of the image, None where it was not measured.

    Parameters
    ----------
    image
        Dwell time of the image in microseconds.
    """
    heads = scan.acquisitions.heads
    indices = scan.found.noise[heads["active_channels"][scan.found.noise] == coils]
    if not indices.size:
        return None
    check_memory(16 * coils * int(heads["number_of_samples"][indices].sum()), f"the noise of {path.name}")
    noise = np.concatenate([scan.acquisitions.samples(int(at)) for at in indices], axis=1)
    check_finite(noise, path, "noise (coil, sample)")
    # White noise grows with the root of the bandwidth.
    own_dwell = float(heads["sample_time_us"][indices[0]])
    if 0 < own_dwell < np.inf and 0 < image < np.inf and 1e-3 < own_dwell / image < 1e3:
        noise = noise * np.float32(np.sqrt(own_dwell / image))
    return np.asarray(noise, dtype=np.complex64)


def _trajectory_kind(root: ElementTree.Element, number: int) -> str:
    found = root.findall(".//{*}encoding")
    return found[number].findtext("{*}trajectory", "").strip().lower() if number < len(found) else ""
