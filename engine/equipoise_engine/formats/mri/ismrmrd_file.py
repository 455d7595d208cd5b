"""Reader for ISMRMRD files, also called MRD: the vendors' raw data as HDF5.

Source: Inati et al. 2017, ISMRM Raw data format, doi:10.1002/mrm.26089; https://ismrmrd.readthedocs.io.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats.hdf5 import check_memory, find
from equipoise_engine.formats.heap import Table
from equipoise_engine.formats.mri.kspace import (
    Slices,
    centre_warnings,
    check_finite,
    line_axis,
    measured_positions,
    sampling_warnings,
)
from equipoise_engine.formats.mri.mrd_acquisitions import (
    BOTH,
    COUNTERS,
    DAMAGE,
    REVERSE,
    Acquisitions,
    Sorted,
    acquisitions_of,
    scan_groups,
    sorted_out,
)
from equipoise_engine.formats.mri.mrd_header import (
    FIELD_KNOWN,
    READOUT_AXIS,
    encoded_space,
    header_root,
    limits_of,
    user_number,
)
from equipoise_engine.formats.mri.mrd_trajectory import along_trajectory
from equipoise_engine.formats.mri.readouts import (
    MAX_RAMP_SAMPLES,
    UNCORRECTED,
    Encoding,
    Grid,
    Readout,
    chosen_part,
    filling_warnings,
    gridding,
    laid_out,
    navigators,
    noise_wanted,
    part_warnings,
    parts,
    ramp_positions,
    slice_order,
    whole_size,
)
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.geometry import Cartesian
from equipoise_engine.recipe import Known, Source

_CARTESIAN = ("cartesian", "epi", "")
_RAMP_NAMES = ("rampUpTime", "flatTopTime", "rampDownTime", "acqDelayTime", "dwellTime")


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
    acquisitions, found = scans[0].acquisitions, scans[0].found
    heads, root = acquisitions.heads, _header(scans[0].group, path)
    if not found.imaging.size:
        said = ", ".join(f"{count} of {name}" for name, count in sorted(found.others.items()) if count)
        raise BadInput(f"{path.name}: {heads.size} readouts, none of which is of an image ({said or 'noise only'})")
    spaces = heads["encoding_space_ref"]
    number = int(spaces[found.imaging[0]])
    imaging = found.imaging[spaces[found.imaging] == number]
    index = heads["idx"]
    counters = {name: {int(n) for n in np.unique(index[name][imaging])} for name in COUNTERS}
    trajectory = _trajectory_kind(root, number)
    cartesian = trajectory in _CARTESIAN or not heads["trajectory_dimensions"][imaging].any()
    if cartesian and trajectory in ("radial", "goldenangle", "spiral"):
        raise Unsupported(f"{path.name}: a {trajectory} scan whose readouts do not tell where they lie in k-space")
    if not cartesian:
        counters["slice"] = {int(n) for n in np.unique(index["slice"][imaging])}
    chosen = chosen_part(told_part, counters, path)

    def taken(indices: NDArray[np.int64]) -> NDArray[np.int64]:
        same = np.ones(indices.size, dtype=bool)
        for name in COUNTERS:
            same &= index[name][indices] == chosen[name]
        return np.asarray(indices[same & (spaces[indices] == number)])

    imaging = taken(imaging)
    if not imaging.size:
        raise BadInput(f"{path.name}: no imaging readouts belong to {told_part or 'the first part'}")
    shape = _shape(heads, imaging, path)
    noise = None
    facts: list[Match] = []
    for one in scans if with_noise else ():
        dwell = float(heads["sample_time_us"][imaging[0]])
        noise = _noise(one.acquisitions, one.found.noise, dwell, shape[0], path)
        if noise is not None:
            where = "noise measurements" if one is scans[0] else f"noise measurements of {one.name}"
            facts.append(Match("noise", where, noise.shape, "(coil, sample)"))
            break
    warnings = part_warnings(counters, chosen)
    if not cartesian:
        told_slice = "slice" in told_part.lower()
        scan = along_trajectory(
            path, acquisitions, imaging, root, number, known, chosen["slice"] if told_slice else None
        )
        if not told_slice:
            warnings = part_warnings({name: counters[name] for name in COUNTERS}, chosen)
        warnings += list(scan.warnings)
        return replace(
            scan,
            matched=(*scan.matched, *facts, *_not_used(found, found.navigators.size, found.calibration.size, noise)),
            warnings=(*warnings, *sampling_warnings(np.ones((1, 1), dtype=np.bool_), shape[0])),
            noise=noise,
            sources=parts(counters, scan.shape),
        )
    if trajectory not in _CARTESIAN:
        warnings.append(f"The header calls the trajectory {trajectory!r}; without positions, it is taken as Cartesian.")
    return _cartesian(path, acquisitions, root, number, known, found, imaging, taken, counters, facts, warnings, noise)


def _cartesian(
    path: Path,
    acquisitions: Acquisitions,
    root: ElementTree.Element,
    number: int,
    known: Known,
    found: Sorted,
    imaging: NDArray[np.int64],
    taken: Any,
    counters: dict[str, set[int]],
    facts: list[Match],
    warnings: list[str],
    noise: NDArray[np.complex64] | None,
) -> MriAcquisition:
    heads, index = acquisitions.heads, acquisitions.heads["idx"]
    coils, samples, centre = _shape(heads, imaging, path)

    def readouts(indices: NDArray[np.int64]) -> list[Readout]:
        return [
            Readout(
                int(at),
                int(index["slice"][at]),
                int(index["kspace_encode_step_1"][at]),
                int(index["kspace_encode_step_2"][at]),
                bool(int(heads["flags"][at]) & REVERSE),
            )
            for at in indices
        ]

    def alike(indices: NDArray[np.int64]) -> NDArray[np.int64]:
        same = heads["active_channels"][indices] == coils
        same &= heads["number_of_samples"][indices] == samples
        same &= heads["center_sample"][indices] == heads["center_sample"][imaging[0]]
        return np.asarray(indices[same])

    lines = readouts(imaging)
    echo_planar = any(readout.backwards for readout in lines)
    filled = 0
    calibration = alike(found.calibration)
    if calibration.size and not echo_planar:
        there = {(line.slice, line.line, line.partition) for line in lines}
        slices = {line.slice for line in lines}
        same = taken(calibration)
        missing = [
            line
            for line in readouts(same if same.size else calibration)
            if (line.slice, line.line, line.partition) not in there and line.slice in slices
        ]
        lines, filled = lines + missing, len(missing)
    encoding, field, depth_mm = _encoding(path, root, number, lines, (coils, samples, centre), known.keep_oversampling)
    encoding = replace(encoding, used=_used(heads, imaging, samples))
    positions = _ramps(root, number, samples) if echo_planar and encoding.columns <= MAX_RAMP_SAMPLES else None
    grid = None
    if positions is not None:
        # The object lies in the middle, whether or not the other pixels are kept.
        middle = _encoding(path, root, number, lines, (coils, samples, centre), False)[0].pixels
        matrix = gridding(positions, encoding.columns, middle)
        grid = Grid(matrix, positions * (encoding.pixels / field[1]))
        encoding = replace(encoding, samples=encoding.columns, centre=encoding.columns // 2, used=(0, encoding.columns))

    def load(readout: Readout) -> NDArray[np.complex64]:
        values = acquisitions.samples(readout.at)
        if grid is None:
            return values
        with np.errstate(all="ignore"):  # damaged files hold places of any size
            off_centre = float(heads["position"][readout.at] @ heads["read_dir"][readout.at])
        return grid.straight(values, off_centre if np.isfinite(off_centre) else 0.0, readout.backwards)

    places = {line.slice: tuple(heads["position"][line.at]) for line in reversed(lines[: imaging.size])}
    order, distance = slice_order({at: tuple(float(x) for x in place) for at, place in places.items()})
    laid = laid_out(path, encoding, lines, order, load)
    slice_mm = depth_mm if distance is None else distance
    if encoding.partitions > 1:
        slice_mm = depth_mm / encoding.partitions
        if laid.along_readout:
            field, slice_mm = (field[0], depth_mm), field[1] / encoding.pixels
    sampled, kspace = laid.sampled, laid.kspace
    if encoding.pixels == encoding.columns and encoding.partitions == 1 and grid is None:
        # Other programs write whole lines with zeros where nothing was measured.
        sampled = sampled & measured_positions(kspace, path)
    marked = readouts(alike(taken(found.navigators)))
    corrected = navigators(encoding, marked, order, load) if marked and encoding.partitions == 1 else None
    interference = _interference(acquisitions, found.interference, readouts, encoding, order, path)
    axis = user_number(root, READOUT_AXIS)
    oversampling = encoding.columns / encoding.pixels
    removed = "no oversampling" if oversampling == 1 else f"{oversampling:.3g}-fold oversampling"
    facts = [
        Match(
            "k-space",
            "data",
            kspace.shape,
            f"{len(lines)} readouts of {samples} samples; {removed} removed, line"
            f" {encoding.centre_row} placed at the centre",
        ),
        Match("field of view", "xml", (), f"{field[0]:g} x {field[1]:g} mm, slices of {slice_mm:.4g} mm"),
        *facts,
    ]
    if encoding.partitions > 1:
        how = "not measured alike, so slices lie along the readout" if laid.along_readout else "transformed to slices"
        facts.append(Match("slices", "kspace_encode_step_2", (encoding.partitions,), how))
    if grid is not None:
        facts.append(Match("ramp sampling", "xml", (), "samples of the gradient's ramps put on a grid"))
    if filled:
        facts.append(
            Match("calibration", "parallel calibration", (filled,), "taken where no imaging line was measured")
        )
    if corrected is not None:
        reason = "alternately forward and reversed readouts of each slice"
        facts.append(Match("navigators", "phase correction", corrected.shape, reason))
    if interference is not None:
        facts.append(Match("interference", "data", interference.shape, "(slice, detector, ky, kx)"))
    facts += _not_used(
        found,
        0 if corrected is not None else found.navigators.size,
        found.calibration.size - filled,
        noise,
    )
    warnings += filling_warnings(filled, bool((heads["flags"][imaging] & np.uint64(BOTH)).any()))
    if echo_planar and corrected is None:
        warnings.append(UNCORRECTED)
    known_field = user_number(root, FIELD_KNOWN) != 0
    scan = MriAcquisition(
        path=path,
        format="ISMRMRD",
        kspace=kspace,
        geometry=Cartesian(
            sampled=sampled,
            field_of_view_mm=field,
            slice_mm=slice_mm,
            phase_axis=line_axis(sampled, 0),
            calibrated=known_field,
        ),
        matched=tuple(facts),
        warnings=(
            *warnings,
            *laid.warnings,
            *sampling_warnings(sampled, coils),
            *(centre_warnings(kspace[kspace.shape[0] // 2]) if encoding.partitions == 1 else ()),
        ),
        noise=noise,
        navigators=corrected,
        reversed_lines=laid.reversed_lines,
        interference=interference,
        sources=parts(counters, kspace.shape),
    )
    return _turned(scan) if axis == 0 else scan


def _turned(scan: MriAcquisition) -> MriAcquisition:
    """Return a scan whose readouts lie along its columns, as files that this program writes may tell."""
    assert isinstance(scan.geometry, Cartesian)
    geometry, kspace = scan.geometry, scan.kspace
    slices, coils, rows, columns = (int(n) for n in kspace.shape)

    def load(index: int) -> NDArray[np.complex64]:
        return np.ascontiguousarray(np.swapaxes(kspace[index], -1, -2))

    return replace(
        scan,
        kspace=Slices(load, (slices, coils, columns, rows)),
        geometry=replace(
            geometry,
            sampled=np.ascontiguousarray(geometry.sampled.T),
            field_of_view_mm=(geometry.field_of_view_mm[1], geometry.field_of_view_mm[0]),
            phase_axis=1 - geometry.phase_axis,
        ),
        interference=None if scan.interference is None else np.swapaxes(scan.interference[...], -1, -2),
    )


def _trajectory_kind(root: ElementTree.Element, number: int) -> str:
    found = root.findall(".//{*}encoding")
    return found[number].findtext("{*}trajectory", "").strip().lower() if number < len(found) else ""


def _shape(heads: NDArray[Any], imaging: NDArray[np.int64], path: Path) -> tuple[int, int, int]:
    """Return coils, samples and the sample at the centre of imaging readouts, which must agree."""
    shapes = {
        (int(head["active_channels"]), int(head["number_of_samples"]))
        for head in np.unique(heads[["active_channels", "number_of_samples"]][imaging])
    }
    if len(shapes) > 1:
        (coils, samples), (other_coils, other) = sorted(shapes)[:2]
        raise Unsupported(
            f"{path.name}: imaging readouts of different lengths ({coils} x {samples} and {other_coils} x {other})"
        )
    coils, samples = shapes.pop()
    if coils == 0 or samples == 0:
        raise BadInput(f"{path.name}: imaging readouts of {coils} coils and {samples} samples")
    centres = np.bincount(heads["center_sample"][imaging])
    centre = int(centres.argmax())
    # A centre that was not set, or the last sample or one beyond, is taken to be the middle.
    return coils, samples, centre if 0 < centre < samples or samples == 1 else samples // 2


def _used(heads: NDArray[Any], imaging: NDArray[np.int64], samples: int) -> tuple[int, int]:
    """Return the first sample that counts of readouts that lie forward, and the one after the last."""
    forward = imaging[(heads["flags"][imaging] & np.uint64(REVERSE)) == 0]
    if not forward.size:
        return 0, samples
    before, after = (int(np.bincount(heads[name][forward]).argmax()) for name in ("discard_pre", "discard_post"))
    return (before, samples - after) if before + after < samples else (0, samples)


def _encoding(
    path: Path,
    root: ElementTree.Element,
    number: int,
    lines: list[Readout],
    shape: tuple[int, int, int],
    keep_oversampling: bool,
) -> tuple[Encoding, tuple[float, float], float]:
    """Return how readouts lie in k-space, the extent `(y, x)` of their image, and the depth of a slice or slab, mm."""
    coils, samples, centre = shape
    space = encoded_space(root, "encodedSpace", number)
    if space is None:
        raise BadInput(
            f"{path.name}: the header tells no encoded space with a field of view above 0 mm", "Export the file again."
        )
    extent, matrix = space
    last, deepest = max(line.line for line in lines), max(line.partition for line in lines)
    columns, whole_mm = max(matrix[0], 1), extent[0]
    first = columns // 2 - centre
    if first < 0 or first + samples > columns:
        needed = 2 * max(centre, samples - centre)
        if samples > columns:
            # The matrix does not count what the readouts are oversampled.
            whole_mm *= needed / columns
        columns = needed
    kept = encoded_space(root, "reconSpace", number)
    kept_mm = extent[0] if kept is None else min(kept[0][0], extent[0])
    pixels = columns
    if not keep_oversampling and 0 < kept_mm < 0.95 * whole_mm:
        pixels = max(1, round(columns * kept_mm / whole_mm))
    field = (extent[1], whole_mm * pixels / columns)
    limits = limits_of(root, "kspace_encoding_step_1", number)
    rows, centre_row = _placed(limits, matrix[1], last)
    limits = limits_of(root, "kspace_encoding_step_2", number)
    partitions, centre_partition, kept_partitions = 1, 0, 1
    depth = extent[2] if np.isfinite(extent[2]) and extent[2] > 0 else 1.0
    if deepest > 0:
        partitions, centre_partition = _placed(limits, matrix[2], deepest)
        kept_partitions = partitions
        if kept is not None and 0 < kept[0][2] < 0.95 * depth:
            kept_partitions = max(1, round(partitions * kept[0][2] / depth))
    encoding = Encoding(
        coils=coils,
        samples=samples,
        centre=centre,
        columns=columns,
        pixels=pixels,
        rows=rows,
        centre_row=centre_row,
        partitions=partitions,
        centre_partition=centre_partition,
        kept_partitions=kept_partitions,
    )
    return encoding, field, depth


def _placed(limits: tuple[int, int, int] | None, encoded: int, last: int) -> tuple[int, int]:
    """Return the size of k-space along a phase encoding, and the number of the step at its centre."""
    centre = encoded // 2
    if limits is not None and limits[0] <= limits[2] <= limits[1] and limits[1] > 0:
        centre = limits[2]
    if centre == 0 and whole_size(encoded, 0, last) > encoded > last:
        # It was not set: the lines reach as far as those of whole k-space do.
        centre = encoded // 2
    return whole_size(max(encoded, 1), centre, last), centre


def _noise(
    acquisitions: Acquisitions, indices: NDArray[np.int64], image: float, coils: int, path: Path
) -> NDArray[np.complex64] | None:
    """Return the noise of the coils `(coil, sample)` at the bandwidth of the image, None where it was not measured.

    Parameters
    ----------
    image
        Dwell time of the image in microseconds.
    """
    heads = acquisitions.heads
    indices = indices[heads["active_channels"][indices] == coils]
    if not indices.size:
        return None
    check_memory(16 * coils * int(heads["number_of_samples"][indices].sum()), f"the noise of {path.name}")
    noise = np.concatenate([acquisitions.samples(int(at)) for at in indices], axis=1)
    check_finite(noise, path, "noise (coil, sample)")
    # White noise grows with the root of the bandwidth.
    own = float(heads["sample_time_us"][indices[0]])
    if 0 < own < np.inf and 0 < image < np.inf and 1e-3 < own / image < 1e3:
        noise = noise * np.float32(np.sqrt(own / image))
    return np.asarray(noise, dtype=np.complex64)


def _interference(
    acquisitions: Acquisitions,
    indices: NDArray[np.int64],
    readouts: Callable[[NDArray[np.int64]], list[Readout]],
    encoding: Encoding,
    order: list[int],
    path: Path,
) -> NDArray[np.complex64] | None:
    """Return what coils without signal measured `(slice, detector, ky, kx)`, None where there are none."""
    if not indices.size or encoding.partitions > 1:
        return None
    detectors = int(acquisitions.heads["active_channels"][indices[0]])
    laid = laid_out(path, replace(encoding, coils=detectors), readouts(indices), order, _loader(acquisitions))
    return np.asarray(laid.kspace[...])


def _loader(acquisitions: Acquisitions) -> Callable[[Readout], NDArray[np.complex64]]:
    return lambda readout: acquisitions.samples(readout.at)


def _ramps(root: ElementTree.Element, number: int, samples: int) -> NDArray[np.float64] | None:
    """Return where samples on a changing gradient lie, as `readouts.ramp_positions`; None where it was constant."""
    found = root.findall(".//{*}encoding")
    description = found[number].find("{*}trajectoryDescription") if number < len(found) else None
    if description is None:
        return None
    told: dict[str, float] = {}
    for item in description:
        try:
            told[item.findtext("{*}name", "")] = float(item.findtext("{*}value", "nan"))
        except ValueError:
            continue
    up, flat, down, delay, dwell = (told.get(name, np.nan) for name in _RAMP_NAMES)
    count = told.get("numSamples", float(samples))
    if not np.isfinite([up, flat, down, delay, dwell]).all() or count != samples or up + down <= 0:
        return None
    # Times are in microseconds; so are dwell times, but for those of some converters, in nanoseconds.
    duration = dwell * samples
    if duration > 20 * (up + flat + down):
        duration /= 1000.0
    if delay >= up and delay + duration <= up + flat:
        return None  # all on the plateau
    return ramp_positions(samples, up=up, flat=flat, down=down, delay=delay, duration=duration)


def _not_used(found: Sorted, correction: int, calibration: int, noise: NDArray[np.complex64] | None) -> list[Match]:
    """Return what of the file is not used, by its kind."""
    others = found.others.copy()
    others["phase correction navigator"] += int(correction)
    others["calibration"] += int(calibration)
    others["noise measurement"] += 0 if noise is not None else int(found.noise.size)
    return [
        Match("not used", kind, (count,), "these readouts are none of the image")
        for kind, count in sorted(others.items())
        if count
    ]
