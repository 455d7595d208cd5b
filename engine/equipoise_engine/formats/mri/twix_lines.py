"""The readouts of Siemens raw data ("twix" .dat): where the measurements of a file lie, and what their lines are for.

Headers of readouts are taken apart after twixtools (P. Ehses).
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.mri.readouts import Readout

MAX_MEASUREMENTS = 64
_ENTRY_BYTES = 152
_FIRST_PART = re.compile(rb"\w{4,}\x00")
# Lines that are none of the image, by the flag that says so, in the order of asking.
_OTHER_LINES = {
    "RTFEEDBACK": "navigator",
    "HPFEEDBACK": "navigator",
    "REFPHASESTABSCAN": "phase stabilisation",
    "PHASESTABSCAN": "phase stabilisation",
    "SYNCDATA": "synchronisation data",
    "RETRO_DUMMYSCAN": "dummy",
    "noname60": "navigator",
    "SLICE_ACCEL_REFSCAN": "single-band reference",
    "SLICE_ACCEL_PHASCOR": "single-band reference",
}
COUNTERS = {"Eco": "echo", "Phs": "phase", "Rep": "repetition", "Set": "set", "Ida": "index a"}
"""What a scan is repeated over: names in the headers, and for people."""
# Place of the off-centre distance in the header of a readout, in bytes.
_OFF_CENTRE, _OFF_CENTRE_LATER = 68, 88
# Place of the number of its coil in the header of a channel of the software VD, in bytes.
_COIL_NUMBER = 24


@dataclass(frozen=True)
class Shape:
    """What readouts of a kind share.

    Parameters
    ----------
    channels, samples
        Coils and samples of a readout.
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
        """Bytes of a readout with its headers."""
        return self.before + self.channels * (self.between + 8 * self.samples)


@dataclass(frozen=True)
class Found:
    """A readout of some kind: where it lies, its shape, and its other counters."""

    readout: Readout
    shape: Shape
    part: tuple[int, ...]
    both: bool
    """Whether an imaging line is a reference line as well."""


@dataclass(frozen=True)
class Lines:
    """The readouts of a measurement, sorted out.

    Parameters
    ----------
    imaging, calibration, navigators, noise
        In the order in which they were measured.
    places
        Middle of each slice `(3,)`, mm, by its number.
    centre_row, centre_partition
        Numbers of the line and of the partition at the centre of k-space.
    others
        How many readouts there are that are none of these, by their kind.
    """

    imaging: list[Found] = field(default_factory=list)
    calibration: list[Found] = field(default_factory=list)
    navigators: list[Found] = field(default_factory=list)
    noise: list[Found] = field(default_factory=list)
    places: dict[int, tuple[float, ...]] = field(default_factory=dict)
    centre_row: int = 0
    centre_partition: int = 0
    others: Counter[str] = field(default_factory=Counter)


def is_twix(path: Path) -> bool:
    """Whether a file begins as raw data of Siemens scanners do, of the software VB or of VD and later."""
    start = _header_start(path)
    if start is None:
        return False
    with path.open("rb") as stream:
        stream.seek(start)
        head = stream.read(8 + 48)
    return len(head) == 56 and struct.unpack("<I", head[:4])[0] > 8 and _FIRST_PART.match(head, 8) is not None


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


def measurements(path: Path) -> tuple[bool, list[tuple[int, int]]]:
    """Return whether the software is VD or later, and where each measurement begins and ends.

    Raises BadInput where the file ends before one of them.
    """
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


def sorted_lines(path: Path, start: int, end: int, later: bool) -> Lines:
    """Return the readouts of a measurement by what they are for.

    Raises BadInput where the mark of the end of the scan is missing.

    Parameters
    ----------
    later
        Whether the software is VD or later.
    """
    from twixtools import mdh_def

    kind = mdh_def.Scan_header if later else mdh_def.VB17_header
    between = ctypes.sizeof(mdh_def.Channel_header if later else mdh_def.VB17_header)
    head = ctypes.sizeof(kind)
    before = head if later else 0
    bits = {name: 1 << at for at, name in enumerate(mdh_def.mask_id)}
    values = np.memmap(path, dtype=np.uint8, mode="r")
    lines = Lines()
    centre: tuple[int, int] | None = None
    position, ended = start, False
    while position + head <= end:
        line = kind.from_buffer_copy(values[position : position + head])
        flags = int(line.EvalInfoMask)
        if flags & bits["ACQEND"]:
            ended = True
            break
        shape = Shape(int(line.UsedChannels), int(line.SamplesInScan), before, between, int(line.CenterCol))
        synchronised = flags & bits["SYNCDATA"]
        size = int(mdh_def.get_dma_len(line)) if synchronised else shape.size
        if size < head or position + size > end or (not synchronised and 0 in (shape.channels, shape.samples)):
            break
        counter = line.Counter
        other = next((name for flag, name in _OTHER_LINES.items() if flags & bits[flag]), None)
        readout = Readout(position, int(counter.Sli), int(counter.Lin), int(counter.Par), bool(flags & bits["REFLECT"]))
        both = bool(flags & bits["PATREFANDIMASCAN"])
        found = Found(readout, shape, tuple(int(getattr(counter, name)) for name in COUNTERS), both)
        if other is not None:
            lines.others[other] += 1
        elif flags & bits["NOISEADJSCAN"]:
            lines.noise.append(found)
        elif flags & bits["PHASCOR"]:
            # those of reference lines have their own phases
            if flags & bits["PATREFSCAN"]:
                lines.others["calibration"] += 1
            else:
                lines.navigators.append(found)
        elif flags & bits["PATREFSCAN"] and not both:
            lines.calibration.append(found)
        else:
            centre = centre or (int(line.CenterLin), int(line.CenterPar))
            place = line.SliceData.SlicePos
            lines.places.setdefault(readout.slice, (float(place.Sag), float(place.Cor), float(place.Tra)))
            lines.imaging.append(found)
        position += size
    if not ended:
        raise BadInput(
            f"{path.name}: the lines end at byte {position} of {end} without the mark of the end of the scan",
            "The file is cut short or damaged, or the scan was stopped; export it again.",
        )
    return lines if centre is None else replace(lines, centre_row=centre[0], centre_partition=centre[1])


def line_samples(values: NDArray[np.uint8], position: int, shape: Shape) -> NDArray[np.complex64]:
    """Return the samples of a readout `(coil, sample)`."""
    block = values[position + shape.before : position + shape.size].reshape(shape.channels, -1)
    return np.ascontiguousarray(block[:, shape.between :]).view("<c8")


def off_centre(values: NDArray[np.uint8], position: int, later: bool) -> float:
    """Return how far off the centre of the magnet a readout was taken, mm."""
    at = position + (_OFF_CENTRE_LATER if later else _OFF_CENTRE)
    (found,) = struct.unpack("<f", values[at : at + 4].tobytes())
    return float(found) if np.isfinite(found) else 0.0


def coil_numbers(values: NDArray[np.uint8], found: Found) -> bytes:
    """Return the numbers of the coils of a readout of the software VD or later, as they are stored."""
    first = found.readout.at + found.shape.before
    block = values[first : found.readout.at + found.shape.size].reshape(found.shape.channels, -1)
    return block[:, _COIL_NUMBER : _COIL_NUMBER + 2].tobytes()
