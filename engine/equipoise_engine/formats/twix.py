"""Reader for raw data of Siemens scanners ("twix" .dat): two-dimensional Cartesian imaging lines.

The headers are taken apart by twixtools (P. Ehses). Names of persons in them are read by nothing here.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.kspace import Slices, centre_warnings, check_finite, sampling_warnings
from equipoise_engine.geometry import Cartesian
from equipoise_engine.preprocess.kspace import without_oversampling

MAX_MEASUREMENTS = 64
MAX_HEADER_BYTES = 256 << 20
_ENTRY_BYTES = 152
_FIRST_PART = re.compile(rb"\w{4,}\x00")
# Lines that are none of the image, by the flag that says so, in the order of asking.
_OTHER_LINES = {
    "NOISEADJSCAN": "noise adjustment",
    "PHASCOR": "phase correction navigator",
    "RTFEEDBACK": "navigator",
    "HPFEEDBACK": "navigator",
    "REFPHASESTABSCAN": "phase stabilisation",
    "PHASESTABSCAN": "phase stabilisation",
    "SYNCDATA": "synchronisation data",
}
_OTHER_COUNTERS = {"Eco": "echoes", "Phs": "phases", "Rep": "repetitions", "Set": "sets", "Ida": "indices a"}
_DAMAGE = (AttributeError, IndexError, KeyError, OSError, OverflowError, TypeError, ValueError, struct.error)


@dataclass(frozen=True)
class _Line:
    """Where a readout lies in the file, and in k-space."""

    position: int
    row: int
    reflected: bool


@dataclass(frozen=True)
class _Readout:
    """What all readouts of a scan share.

    Parameters
    ----------
    channels, samples
        Coils and samples of a line.
    before, between
        Bytes of headers before the first channel, and before each channel's samples.
    centre
        Sample at the centre of k-space.
    """

    channels: int
    samples: int
    before: int
    between: int
    centre: int

    @property
    def size(self) -> int:
        """Bytes of a line with its headers."""
        return self.before + self.channels * (self.between + 8 * self.samples)


@dataclass(frozen=True)
class _Lines:
    """The lines of a measurement, sorted out.

    Parameters
    ----------
    slices
        Lines of each slice, by its number; `row` is the number of the phase-encoding line still.
    readout
        What they share.
    centre_row
        Number of the line at the centre of k-space.
    others
        How many lines there are that are none of the image, by their kind.
    counts
        How many values other counters take, by the counter.
    """

    slices: dict[int, list[_Line]]
    readout: _Readout
    centre_row: int
    others: Counter[str] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)


def is_twix(path: Path) -> bool:
    """Whether a file begins as raw data of Siemens scanners do, of the software VB or of VD and later."""
    start = _header_start(path)
    if start is None:
        return False
    with path.open("rb") as stream:
        stream.seek(start)
        head = stream.read(8 + 48)
    return len(head) == 56 and struct.unpack("<I", head[:4])[0] > 8 and _FIRST_PART.match(head, 8) is not None


def read_twix(path: Path) -> MriAcquisition:
    """Return the last measurement in a file; the ones before it adjust the scanner. k-space is read when needed.

    Oversampling along the readout is removed, averages are averaged, reversed lines are turned.

    Raises
    ------
    BadInput
        The file is damaged or cut short, or holds no imaging lines.
    Unsupported
        The scan is three-dimensional or not Cartesian.
    """
    try:
        return _read(path)
    except _DAMAGE as error:
        raise BadInput(
            f"{path.name}: the Siemens raw data are damaged ({type(error).__name__}: {error})",
            "Copy or export the file again.",
        ) from error


def _header_start(path: Path) -> int | None:
    """Return where the header of the first measurement would begin."""
    with path.open("rb") as stream:
        start = stream.read(24)
    if len(start) < 24:
        return None
    first, count = struct.unpack("<II", start[:8])
    if first >= 10000 or count > MAX_MEASUREMENTS:
        return 0  # VB: the file is one measurement
    (offset,) = struct.unpack("<Q", start[16:24])
    return int(offset) if count and offset + 56 < path.stat().st_size else None


def _measurements(path: Path) -> tuple[bool, list[tuple[int, int]]]:
    """Return whether the software is VD or later, and where each measurement begins and ends."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        first, count = struct.unpack("<II", stream.read(8))
        if first >= 10000 or count > MAX_MEASUREMENTS:
            return False, [(0, size)]
        entries = [struct.unpack("<QQ", stream.read(_ENTRY_BYTES)[8:24]) for _ in range(count)]
    if count == 1 and entries[0][1] == 0:
        entries = [(entries[0][0], size - entries[0][0])]
    for number, (offset, length) in enumerate(entries):
        if offset + length > size:
            raise BadInput(
                f"{path.name}: measurement {number + 1} of {count} ends at byte {offset + length}, the file of {size}"
                " bytes before it",
                "The file is cut short; copy or export it again.",
            )
    return True, [(int(offset), int(offset + length)) for offset, length in entries]


def _read(path: Path) -> MriAcquisition:
    later, measurements = _measurements(path)
    start, end = measurements[-1]
    header, data_start = _header(path, start, end)
    protocol = header["MeasYaps"]
    space = protocol["sKSpace"]
    if int(space.get("ucTrajectory", 1)) != 1:
        raise Unsupported(f"{path.name}: the readouts are not Cartesian (trajectory {space['ucTrajectory']})")
    lines = _sort_lines(path, data_start, end, later)
    readout = lines.readout
    base = int(space["lBaseResolution"])
    oversampling = max(round(_first_number(header, "flReadoutOSFactor", 2.0)), 1)
    full = base * oversampling
    if readout.samples > full:
        raise Unsupported(
            f"{path.name}: readouts of {readout.samples} samples, more than the {base} pixels with {oversampling}-fold"
            " oversampling take",
        )
    extent = protocol["sSliceArray"]["asSlice"][0]
    extra = float(space.get("dPhaseOversamplingForDialog", 0.0))
    taken = sorted({line.row for found in lines.slices.values() for line in found})
    rows = max(
        round(int(space["lPhaseEncodingLines"]) * (1 + extra)),
        2 * max(lines.centre_row, taken[-1] + 1 - lines.centre_row),
    )
    shift = rows // 2 - lines.centre_row
    first_sample = full // 2 - readout.centre
    if not 0 <= first_sample <= full - readout.samples:
        raise Unsupported(
            f"{path.name}: readouts of {readout.samples} samples with the centre of k-space at {readout.centre} reach"
            f" beyond the {full} that were to be measured",
        )
    check_memory(8 * 4 * readout.channels * rows * full, f"one slice of {path.name}")
    sampled = np.zeros((rows, base), dtype=bool)
    # Where the sample at a column of the image's own k-space was measured.
    own = oversampling * (np.arange(base) - base // 2) + full // 2
    columns = (own >= first_sample) & (own < first_sample + readout.samples)
    sampled[np.array(taken) + shift] = columns
    order = sorted(lines.slices)
    values = np.memmap(path, dtype=np.uint8, mode="r")

    def load(index: int) -> NDArray[np.complex64]:
        plane = np.zeros((readout.channels, rows, full), dtype=np.complex64)
        count = np.zeros(rows, dtype=np.float32)
        window = slice(first_sample, first_sample + readout.samples)
        for line in lines.slices[order[index]]:
            samples = _samples(values, line, readout)
            plane[:, line.row + shift, window] += samples[:, ::-1] if line.reflected else samples
            count[line.row + shift] += 1
        plane /= np.maximum(count, 1)[:, None]
        check_finite(plane, path, f"slice {index} (coil, ky, kx)")
        return (plane if full == base else without_oversampling(plane, -1, base)) * sampled

    kspace = Slices(load, (len(order), readout.channels, rows, base))
    thickness = float(extent.get("dThickness", 1.0))
    field_of_view = (float(extent["dPhaseFOV"]) * (1 + extra), float(extent["dReadoutFOV"]))
    matched = [
        Match(
            "k-space",
            f"measurement {len(measurements)}",
            kspace.shape,
            f"imaging lines; {oversampling}-fold oversampling of {readout.samples} samples removed, the line"
            f" {lines.centre_row} placed at the centre",
        ),
        Match(
            "field of view",
            "MeasYaps",
            (),
            f"{field_of_view[0]:g} x {field_of_view[1]:g} mm, slices of {thickness:g} mm",
        ),
    ]
    if len(measurements) > 1:
        before = f"the {len(measurements) - 1} before the last, which adjust the scanner"
        matched.append(Match("not used", "other measurements", (len(measurements) - 1,), before))
    matched += [
        Match("not used", kind, (count,), "these lines are none of the image")
        for kind, count in sorted(lines.others.items())
    ]
    return MriAcquisition(
        path=path,
        format="Siemens raw data",
        kspace=kspace,
        geometry=Cartesian(
            sampled=sampled, field_of_view_mm=field_of_view, slice_mm=thickness, phase_axis=0, calibrated=True
        ),
        matched=tuple(matched),
        warnings=(
            *_line_warnings(header, lines),
            *sampling_warnings(sampled, readout.channels),
            *centre_warnings(kspace[len(order) // 2]),
        ),
    )


def _header(path: Path, start: int, end: int) -> tuple[dict[str, Any], int]:
    """Return the header of a measurement by its parts, and where its lines begin."""
    from twixtools import twixprot  # its import takes most of a second

    with path.open("rb") as stream:
        stream.seek(start)
        length, _ = struct.unpack("<II", stream.read(8))
        if length > min(MAX_HEADER_BYTES, end - start):
            raise BadInput(
                f"{path.name}: a header of {length} bytes in a measurement of {end - start}",
                "The file is cut short or damaged; copy or export it again.",
            )
        stream.seek(start)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            header = cast(dict[str, Any], twixprot.parse_twix_hdr(stream))
    if "MeasYaps" not in header:
        raise BadInput(f"{path.name}: the header has no protocol (MeasYaps)", "Copy or export the file again.")
    return header, start + int(length)


def _sort_lines(path: Path, start: int, end: int, later: bool) -> _Lines:
    """Return the imaging lines of a measurement, and what else there is."""
    from twixtools import mdh_def

    kind = mdh_def.Scan_header if later else mdh_def.VB17_header
    between = ctypes.sizeof(mdh_def.Channel_header if later else mdh_def.VB17_header)
    head = ctypes.sizeof(kind)
    before = head if later else 0
    values = np.memmap(path, dtype=np.uint8, mode="r")
    slices: dict[int, list[_Line]] = {}
    others: Counter[str] = Counter()
    seen: dict[str, set[int]] = {name: set() for name in (*_OTHER_COUNTERS, "Par")}
    readout: _Readout | None = None
    centre_row = 0
    position, ended = start, False
    while position + head <= end:
        line = kind.from_buffer_copy(values[position : position + head])
        flags = mdh_def.get_active_flags(line)
        if "ACQEND" in flags:
            ended = True
            break
        found = _Readout(int(line.UsedChannels), int(line.SamplesInScan), before, between, int(line.CenterCol))
        size = int(mdh_def.get_dma_len(line)) if "SYNCDATA" in flags else found.size
        if size < head or position + size > end or ("SYNCDATA" not in flags and 0 in (found.channels, found.samples)):
            break
        other = next((name for flag, name in _OTHER_LINES.items() if flag in flags), None)
        if other is None and not mdh_def.is_image_scan(line):
            other = "calibration"
        if other is not None:
            others[other] += 1
        else:
            counter = line.Counter
            # Of what is repeated, the first is taken; averages are averaged.
            for name, values_seen in seen.items():
                values_seen.add(int(getattr(counter, name)))
            if all(getattr(counter, name) == 0 for name in _OTHER_COUNTERS):
                if readout is None:
                    readout, centre_row = found, int(line.CenterLin)
                elif found != readout:
                    raise Unsupported(
                        f"{path.name}: imaging lines of different lengths or centres ({readout.channels} x"
                        f" {readout.samples} around {readout.centre}, {found.channels} x {found.samples} around"
                        f" {found.centre})"
                    )
                slices.setdefault(int(counter.Sli), []).append(_Line(position, int(counter.Lin), "REFLECT" in flags))
        position += size
    if not ended:
        raise BadInput(
            f"{path.name}: the lines end at byte {position} of {end} without the mark of the end of the scan",
            "The file is cut short or damaged, or the scan was stopped; export it again.",
        )
    if readout is None:
        said = ", ".join(f"{count} of {name}" for name, count in sorted(others.items())) or "none at all"
        raise BadInput(f"{path.name}: the last measurement holds no imaging lines ({said})")
    partitions = len(seen.pop("Par"))
    if partitions > 1:
        raise Unsupported(
            f"{path.name}: a three-dimensional scan of {partitions} partitions; two-dimensional scans are read"
        )
    return _Lines(slices, readout, centre_row, others, {name: len(found) for name, found in seen.items()})


def _samples(values: NDArray[np.uint8], line: _Line, readout: _Readout) -> NDArray[np.complex64]:
    """Return the samples of a line `(coil, sample)`."""
    first = line.position + readout.before
    block = values[first : line.position + readout.size].reshape(readout.channels, -1)
    return np.ascontiguousarray(block[:, readout.between :]).view("<c8")


def _line_warnings(header: dict[str, Any], lines: _Lines) -> list[str]:
    warnings = [
        f"The scan has {count} {_OTHER_COUNTERS[name]}; the first is read."
        for name, count in lines.counts.items()
        if count > 1
    ]
    if any(line.reflected for found in lines.slices.values() for line in found):
        warnings.append(
            "Lines were measured in both directions and are not corrected for their phases: expect a ghost half a"
            " field of view away."
        )
    ramps = header.get("Meas", {}).get("alRegridMode") or header["MeasYaps"].get("alRegridMode") or [1]
    if isinstance(ramps, list) and ramps and int(ramps[0]) > 1:
        warnings.append("Samples were taken while the gradient changed (ramp sampling); they are not put on a grid.")
    return warnings


def _first_number(header: dict[str, Any], name: str, otherwise: float) -> float:
    """Return the first number of this name in the parts of the header."""
    for part in header.values():
        value = part.get(name) if isinstance(part, dict) else None
        if isinstance(value, (int, float)):
            return float(value)
    return otherwise
