"""The protocol in the header of Siemens raw data: what was asked of the scanner.

The headers are taken apart by twixtools (P. Ehses), after whose reading ramps of the gradient are told. Names of
persons in them are read by nothing here.
"""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.mri.ramps import MAX_RAMP_SAMPLES, Grid, Trapezoid, gridding

MAX_HEADER_BYTES = 256 << 20
_TRAPEZOID, _SINE = 2, 4


@dataclass(frozen=True)
class Protocol:
    """The protocol of a measurement, by the parts of its header."""

    header: dict[str, Any]

    @property
    def space(self) -> dict[str, Any]:
        """What is told of k-space."""
        return cast(dict[str, Any], self.header["MeasYaps"]["sKSpace"])

    @property
    def base(self) -> int:
        """Pixels along the readout."""
        return int(self.space["lBaseResolution"])

    @property
    def oversampling(self) -> int:
        """How many samples are taken for each of them."""
        for part in self.header.values():
            value = part.get("flReadoutOSFactor") if isinstance(part, dict) else None
            if isinstance(value, (int, float)):
                return max(round(float(value)), 1)
        return 2

    @property
    def lines(self) -> int:
        """Phase-encoded lines of whole k-space."""
        return round(int(self.space["lPhaseEncodingLines"]) * self._more("dPhaseOversamplingForDialog"))

    @property
    def field(self) -> tuple[float, float]:
        """Extent along the lines and along the readout without oversampling of it, mm."""
        extent = self._slice
        return float(extent["dPhaseFOV"]) * self._more("dPhaseOversamplingForDialog"), float(extent["dReadoutFOV"])

    @property
    def thickness(self) -> float:
        """Thickness of a slice, mm."""
        return float(self._slice.get("dThickness", 1.0))

    @property
    def depth(self) -> float:
        """Thickness of a slab with its oversampling, mm."""
        return self.thickness * self._more("dSliceOversamplingForDialog")

    @property
    def samples_ramps(self) -> bool:
        """Whether samples are taken while the gradient changes."""
        return int(self._regrid("alRegridMode", 1.0)) > 1

    def grid(self, samples: int, columns: int) -> Grid | None:
        """Return what puts samples on a grid; None where the gradient was constant, or its shape is not told."""
        mode = int(self._regrid("alRegridMode", 1.0))
        if mode not in (_TRAPEZOID, _SINE) or columns > MAX_RAMP_SAMPLES:
            return None
        gradient = Trapezoid(
            up=self._regrid("alRegridRampupTime", -1.0),
            flat=self._regrid("alRegridFlattopTime", -1.0),
            down=self._regrid("alRegridRampdownTime", -1.0),
            delay=self._regrid("alRegridDelaySamplesTime", -1.0),
            duration=self._regrid("aflRegridADCDuration", -1.0),
            sine=mode == _SINE,
        )
        reached = gradient.positions(samples)
        if reached is None:
            return None
        return Grid(gridding(reached, columns, self.base), reached * self.base / float(self._slice["dReadoutFOV"]))

    @property
    def _slice(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.header["MeasYaps"]["sSliceArray"]["asSlice"][0])

    def _more(self, name: str) -> float:
        return 1 + float(self.space.get(name, 0.0))

    def _regrid(self, name: str, otherwise: float) -> float:
        """Return the first value of a list about ramp sampling."""
        for part in ("Meas", "MeasYaps"):
            value = self.header.get(part, {}).get(name)
            if isinstance(value, list) and value and isinstance(value[0], (int, float)):
                return float(value[0])
        return otherwise


def read_protocol(path: Path, start: int, end: int) -> tuple[Protocol, int]:
    """Return the protocol of the measurement between these bytes, and where its lines begin.

    Raises BadInput where there is none.
    """
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
    return Protocol(header), start + int(length)
