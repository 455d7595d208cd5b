"""The part of an ISMRMRD file that is read: one scan, one encoding, one of the values that each counter takes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.mri.mrd_acquisitions import COUNTERS, REVERSE, Acquisitions, Sorted
from equipoise_engine.formats.mri.readouts import Readout


@dataclass(frozen=True, kw_only=True)
class Part:
    """What of a scan is read.

    Parameters
    ----------
    path
        File named in messages.
    acquisitions, found
        The readouts of the scan, and what they are for.
    root, number
        Header, and which of its encodings is read.
    chosen
        Value that is read of each counter.
    positioned
        Whether its readouts tell where they lie in k-space.
    imaging
        Indices of its readouts of the image, in the order in which they were measured.
    coils, samples, centre
        Of each of these; `centre` is the sample at the centre of k-space.
    noise, noise_source
        Of the coils `(coil, sample)`, and where it was measured; None where it was not.
    """

    path: Path
    acquisitions: Acquisitions
    found: Sorted
    root: ElementTree.Element
    number: int
    chosen: dict[str, int]
    positioned: bool
    imaging: NDArray[np.int64]
    coils: int
    samples: int
    centre: int
    noise: NDArray[np.complex64] | None = None
    noise_source: str = ""

    @property
    def heads(self) -> NDArray[Any]:
        """Headers of all readouts."""
        return self.acquisitions.heads

    def own(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of these readouts that belong to this part."""
        return own(self.heads, indices, self.number, self.chosen)

    def alike(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of these readouts that are as long as those of the image, around the same centre."""
        same = self.heads["active_channels"][indices] == self.coils
        same &= self.heads["number_of_samples"][indices] == self.samples
        same &= self.heads["center_sample"][indices] == self.heads["center_sample"][self.imaging[0]]
        return np.asarray(indices[same])

    def readouts(self, indices: NDArray[np.int64]) -> list[Readout]:
        """Return where these readouts lie in k-space."""
        index = self.heads["idx"]
        return [
            Readout(
                int(at),
                int(index["slice"][at]),
                int(index["kspace_encode_step_1"][at]),
                int(index["kspace_encode_step_2"][at]),
                bool(int(self.heads["flags"][at]) & REVERSE),
            )
            for at in indices
        ]

    @property
    def noise_facts(self) -> list[Match]:
        """Where the noise was found."""
        if self.noise is None:
            return []
        return [Match("noise", self.noise_source, self.noise.shape, "(coil, sample)")]

    def not_used(self, *, corrected: bool = False, filled: int = 0) -> list[Match]:
        """Return what of the scan is not used, by its kind.

        Parameters
        ----------
        corrected
            Whether its navigators are used.
        filled
            How many of its calibration lines are.
        """
        others = self.found.others.copy()
        others["phase correction navigator"] += 0 if corrected else int(self.found.navigators.size)
        others["calibration"] += int(self.found.calibration.size) - filled
        others["noise measurement"] += 0 if self.noise is not None else int(self.found.noise.size)
        return [
            Match("not used", kind, (count,), "these readouts are none of the image")
            for kind, count in sorted(others.items())
            if count
        ]


def own(heads: NDArray[Any], indices: NDArray[np.int64], number: int, chosen: dict[str, int]) -> NDArray[np.int64]:
    """Return those of these readouts that are of an encoding and have the chosen value of each counter."""
    same = heads["encoding_space_ref"][indices] == number
    for name in COUNTERS:
        same &= heads["idx"][name][indices] == chosen[name]
    return np.asarray(indices[same])


def shape_of(heads: NDArray[Any], imaging: NDArray[np.int64], path: Path) -> tuple[int, int, int]:
    """Return coils, samples and the sample at the centre of imaging readouts.

    Raises
    ------
    BadInput
        They are empty.
    Unsupported
        They differ.
    """
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
