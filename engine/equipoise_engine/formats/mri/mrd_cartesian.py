"""ISMRMRD readouts that are lines of Cartesian k-space, echo-planar ones among them, laid out as slices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.formats.mri.kspace import (
    Slices,
    centre_warnings,
    line_axis,
    measured_positions,
    sampling_warnings,
)
from equipoise_engine.formats.mri.mrd_acquisitions import BOTH
from equipoise_engine.formats.mri.mrd_encoding import Space, grid_of, space_of
from equipoise_engine.formats.mri.mrd_header import FIELD_KNOWN, READOUT_AXIS, user_number
from equipoise_engine.formats.mri.mrd_part import Part
from equipoise_engine.formats.mri.ramps import Grid
from equipoise_engine.formats.mri.readouts import (
    UNCORRECTED,
    Encoding,
    Laid,
    Readout,
    filling_warnings,
    laid_out,
    navigators,
    slice_order,
)
from equipoise_engine.geometry import Cartesian


def along_lines(part: Part, keep_oversampling: bool) -> MriAcquisition:
    """Return the scan of imaging readouts that are lines of Cartesian k-space.

    Calibration lines fill in where no imaging line was measured; readouts of the other direction are turned, and what
    was sampled on ramps of the gradient is put on a grid.

    Raises
    ------
    BadInput
        The header tells no encoded space, or a readout lies outside of it.
    Unsupported
        Partitions of a three-dimensional scan were not measured alike, nor its readouts as a whole.
    OutOfMemory
        One slice, or one three-dimensional scan, does not fit into the memory.
    """
    plan = _planned(part, keep_oversampling)
    laid = laid_out(part.path, plan.encoding, plan.lines, plan.order, plan.load)
    sampled = _sampled(plan, laid)
    field, slice_mm = _extent(plan, laid)
    corrected = _navigators(plan)
    interference = _interference(plan)
    facts = [*_facts(plan, laid, f"{field[0]:g} x {field[1]:g} mm, slices of {slice_mm:.4g} mm")]
    if corrected is not None:
        reason = "alternately forward and reversed readouts of each slice"
        facts.append(Match("navigators", "phase correction", corrected.shape, reason))
    if interference is not None:
        facts.append(Match("interference", "data", interference.shape, "(slice, detector, ky, kx)"))
    scan = MriAcquisition(
        path=part.path,
        format="ISMRMRD",
        kspace=laid.kspace,
        geometry=Cartesian(
            sampled=sampled,
            field_of_view_mm=field,
            slice_mm=slice_mm,
            phase_axis=line_axis(sampled, 0),
            calibrated=user_number(part.root, FIELD_KNOWN) != 0,
        ),
        matched=(*facts, *part.noise_facts, *part.not_used(corrected=corrected is not None, filled=plan.filled)),
        warnings=_warnings(plan, laid, sampled, corrected is not None),
        noise=part.noise,
        navigators=corrected,
        reversed_lines=laid.reversed_lines,
        interference=interference,
    )
    return _turned(scan) if user_number(part.root, READOUT_AXIS) == 0 else scan


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How the lines of a part are laid out.

    Parameters
    ----------
    lines
        Those of the image, then those that fill in, of which there are `filled`.
    grid
        What puts their samples on a grid, where the gradient changed.
    order
        Numbers of the slices, from first to last.
    distance
        Between slices in mm, where their places tell it.
    """

    part: Part
    lines: list[Readout]
    filled: int
    space: Space
    grid: Grid | None
    order: list[int]
    distance: float | None

    @property
    def encoding(self) -> Encoding:
        """How the lines lie in k-space, once they are on a grid."""
        whole = self.space.encoding
        if self.grid is None:
            return whole
        return replace(whole, samples=whole.columns, centre=whole.columns // 2, used=(0, whole.columns))

    @property
    def echo_planar(self) -> bool:
        """Whether lines of the image were read backwards."""
        return any(line.backwards for line in self.lines[: len(self.lines) - self.filled])

    def load(self, readout: Readout) -> NDArray[np.complex64]:
        """Return the samples of a readout `(coil, sample)`."""
        values = self.part.acquisitions.samples(readout.at)
        if self.grid is None:
            return values
        heads = self.part.heads
        with np.errstate(all="ignore"):  # damaged files hold places of any size
            off_centre = float(heads["position"][readout.at] @ heads["read_dir"][readout.at])
        return self.grid.straight(values, off_centre if np.isfinite(off_centre) else 0.0, readout.backwards)


def _planned(part: Part, keep_oversampling: bool) -> _Plan:
    imaging = part.readouts(part.imaging)
    echo_planar = any(readout.backwards for readout in imaging)
    filling = [] if echo_planar else _filling(part, imaging)
    lines = imaging + filling
    space, grid = space_of(part, lines, keep_oversampling), None
    if echo_planar:
        # The object lies in the middle, whether or not the other pixels are kept.
        grid = grid_of(part, space, space_of(part, lines, False).encoding.pixels)
    places = {line.slice: part.heads["position"][line.at] for line in reversed(imaging)}
    order, distance = slice_order({at: tuple(float(x) for x in place) for at, place in places.items()})
    return _Plan(part=part, lines=lines, filled=len(filling), space=space, grid=grid, order=order, distance=distance)


def _filling(part: Part, imaging: list[Readout]) -> list[Readout]:
    """Return calibration lines where no line of the image was measured."""
    calibration = part.alike(part.found.calibration)
    same = part.own(calibration)
    there = {(line.slice, line.line, line.partition) for line in imaging}
    slices = {line.slice for line in imaging}
    return [
        line
        for line in part.readouts(same if same.size else calibration)
        if (line.slice, line.line, line.partition) not in there and line.slice in slices
    ]


def _sampled(plan: _Plan, laid: Laid) -> NDArray[np.bool_]:
    """Return where k-space was measured `(ky, kx)`."""
    encoding = plan.encoding
    if encoding.pixels != encoding.columns or encoding.partitions > 1 or plan.grid is not None:
        return laid.sampled
    # Other programs write whole lines with zeros where nothing was measured.
    return np.asarray(laid.sampled & measured_positions(laid.kspace, plan.part.path))


def _extent(plan: _Plan, laid: Laid) -> tuple[tuple[float, float], float]:
    """Return the extent `(y, x)` of the image and the distance of its slices, mm."""
    encoding, field, depth = plan.encoding, plan.space.field, plan.space.depth
    if encoding.partitions == 1:
        return field, depth if plan.distance is None else plan.distance
    if laid.along_readout:
        return (field[0], depth), field[1] / encoding.pixels
    return field, depth / encoding.partitions


def _navigators(plan: _Plan) -> NDArray[np.complex64] | None:
    """Return readouts along the middle of k-space, as `readouts.navigators`; None where there are none."""
    part = plan.part
    marked = part.readouts(part.alike(part.own(part.found.navigators)))
    if not marked or plan.encoding.partitions > 1:
        return None
    return navigators(plan.encoding, marked, plan.order, plan.load)


def _interference(plan: _Plan) -> NDArray[np.complex64] | None:
    """Return what coils without signal measured `(slice, detector, ky, kx)`, None where there are none."""
    part, indices = plan.part, plan.part.found.interference
    if not indices.size or plan.encoding.partitions > 1:
        return None
    encoding = replace(plan.encoding, coils=int(part.heads["active_channels"][indices[0]]))

    def load(readout: Readout) -> NDArray[np.complex64]:
        return part.acquisitions.samples(readout.at)

    return np.asarray(laid_out(part.path, encoding, part.readouts(indices), plan.order, load).kspace[...])


def _facts(plan: _Plan, laid: Laid, extent: str) -> list[Match]:
    """Return which parts of the file the k-space was made of; `extent` says how large its image is."""
    encoding, part = plan.encoding, plan.part
    oversampling = encoding.columns / encoding.pixels
    removed = "no oversampling" if oversampling == 1 else f"{oversampling:.3g}-fold oversampling"
    reason = (
        f"{len(plan.lines)} readouts of {part.samples} samples; {removed} removed, line {encoding.centre_row} placed at"
        " the centre"
    )
    facts = [Match("k-space", "data", laid.kspace.shape, reason), Match("field of view", "xml", (), extent)]
    if encoding.partitions > 1:
        how = "not measured alike, so slices lie along the readout" if laid.along_readout else "transformed to slices"
        facts.append(Match("slices", "kspace_encode_step_2", (encoding.partitions,), how))
    if plan.grid is not None:
        facts.append(Match("ramp sampling", "xml", (), "samples of the gradient's ramps put on a grid"))
    if plan.filled:
        reason = "taken where no imaging line was measured"
        facts.append(Match("calibration", "parallel calibration", (plan.filled,), reason))
    return facts


def _warnings(plan: _Plan, laid: Laid, sampled: NDArray[np.bool_], corrected: bool) -> tuple[str, ...]:
    integrated = bool((plan.part.heads["flags"][plan.part.imaging] & np.uint64(BOTH)).any())
    return (
        *filling_warnings(plan.filled, integrated),
        *([UNCORRECTED] if plan.echo_planar and not corrected else []),
        *laid.warnings,
        *sampling_warnings(sampled, plan.part.coils),
        *(centre_warnings(laid.kspace[laid.kspace.shape[0] // 2]) if plan.encoding.partitions == 1 else ()),
    )


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
