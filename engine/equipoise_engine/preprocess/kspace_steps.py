"""The preparation of k-space, step by step as a recipe tells it; each slice by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, assert_never

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import Cartesian, MriGeometry
from equipoise_engine.preprocess.compression import compression
from equipoise_engine.preprocess.ghosts import ghost_phase, without_ghosts
from equipoise_engine.preprocess.interference import SAMPLES_PER_UNKNOWN, without_interference
from equipoise_engine.preprocess.kspace import ComplexArray, coil_combinations
from equipoise_engine.preprocess.whitening import noise_covariance, outermost, whitened, whitening_matrix
from equipoise_engine.recipe import (
    MRI_STEPS,
    CompressCoils,
    GhostCorrection,
    MriStep,
    Prewhiten,
    RegressInterference,
    Step,
    name_of,
)

_Values = TypeVar("_Values", bound=NDArray[Any])

MAX_NOISE_SAMPLES = 1 << 18
"""Noise samples of a coil that are looked at; more hardly change a covariance."""


def default_kspace_steps(scan: MriAcquisition) -> tuple[Step, ...]:
    """Return the steps that a scan usually gets: those that what was measured beside k-space is there for."""
    steps: list[Step] = []
    if scan.interference is not None:
        steps.append(RegressInterference())
    if scan.navigators is not None and scan.reversed_lines is not None and scan.reversed_lines.any():
        steps.append(GhostCorrection())
    return tuple(steps)


def check_kspace_steps(scan: MriAcquisition, steps: tuple[Step, ...]) -> None:
    """Raise BadInput, naming the step and the reason, where a scan cannot be prepared by these steps."""
    coils = scan.shape[1]
    for number, step in enumerate(steps, start=1):
        said = f"{scan.path.name}: step {number} ({name_of(step)})"
        if not isinstance(step, MRI_STEPS):
            raise BadInput(f"{said} is one for projections; this is k-space", "Leave it out.")
        if any(type(other) is type(step) for other in steps[: number - 1]):
            raise BadInput(f"{said} stands twice", "Leave one of them out.")
        match step:
            case Prewhiten():
                _check_noise(scan, step, said)
            case RegressInterference():
                _check_interference(scan, step, said)
            case GhostCorrection():
                _check_navigators(scan, said)
            case CompressCoils(coils=wanted):
                if not 1 <= wanted <= coils:
                    raise BadInput(f"{said}: {wanted} virtual coils are outside 1 to {coils}, the number of coils")
                coils = wanted
            case _:
                assert_never(step)


def prepared_coils(scan: MriAcquisition) -> int:
    """Return how many coils prepared k-space has."""
    counts = [step.coils for step in _steps_of(scan) if isinstance(step, CompressCoils)]
    return counts[-1] if counts else int(scan.kspace.shape[1])


def prepared_kspace(
    scan: MriAcquisition,
    slices: Sequence[int],
    kspace: NDArray[np.complex64],
    geometry: MriGeometry,
    stage: int | None = None,
) -> NDArray[np.complex64]:
    """Return k-space `(slice, coil, ...)`, complex64, after the steps of the scan's recipe.

    Parameters
    ----------
    slices
        Which of the scan's slices these are.
    kspace
        Of these slices `(slice, coil, ...)`, or a part of it; zero where it was not measured.
    geometry
        Where `kspace` was measured: that of the scan, or a part of it.
    stage
        How many steps are done, 0 for none; None for all.

    Raises
    ------
    BadInput
        A step does not suit the scan, its values cannot be used, or there is no such stage.
    """
    steps = _first_steps(scan, stage)
    if not steps or not slices:
        return kspace
    made = (_prepared(scan, index, one, geometry, steps).kspace for index, one in zip(slices, kspace, strict=True))
    return np.stack(list(made))


def noise_correlation(scan: MriAcquisition, index: int) -> NDArray[np.float32]:
    """Return how alike the noise of coils is `(coil, coil)`, float32, 0 to 1, as whitening would find it in a slice.

    Before whitening, where the recipe has that step; after all other steps before it. Ones on the diagonal.

    Raises
    ------
    BadInput
        As `prepared_kspace`, or the noise cannot be estimated.
    """
    steps = _first_steps(scan, None)
    place = next((i for i, step in enumerate(steps) if isinstance(step, Prewhiten)), len(steps))
    step = steps[place] if place < len(steps) else Prewhiten()
    assert isinstance(step, Prewhiten)
    state = _prepared(scan, index, np.asarray(scan.kspace[index], dtype=np.complex64), scan.geometry, steps[:place])
    covariance = _covariance(scan, state, scan.geometry, step)
    gain = np.sqrt(np.maximum(covariance.diagonal().real, np.finfo(np.float64).tiny))
    return np.asarray(np.abs(covariance) / np.outer(gain, gain), dtype=np.float32)


@dataclass(frozen=True)
class _State:
    """k-space `(coil, ...)` on its way, and how its coils came from the measured ones: `(coil, measured coil)`."""

    kspace: NDArray[np.complex64]
    mixing: ComplexArray


def _steps_of(scan: MriAcquisition) -> tuple[Step, ...]:
    return default_kspace_steps(scan) if scan.recipe.steps is None else scan.recipe.steps


def _first_steps(scan: MriAcquisition, stage: int | None) -> tuple[MriStep, ...]:
    """Return the first steps of a scan, or all of them, once they are known to suit it."""
    steps = _steps_of(scan)
    if stage is not None and not 0 <= stage <= len(steps):
        raise BadInput(f"{scan.path.name}: there is no stage {stage}; its preparation has {len(steps)} steps")
    check_kspace_steps(scan, steps)
    return tuple(step for step in steps[:stage] if isinstance(step, MRI_STEPS))


def _prepared(
    scan: MriAcquisition,
    index: int,
    kspace: NDArray[np.complex64],
    geometry: MriGeometry,
    steps: tuple[MriStep, ...],
) -> _State:
    state = _State(kspace, np.eye(kspace.shape[0], dtype=np.complex128))
    for step in steps:
        state = _after(scan, index, state, geometry, step)
    return state


def _after(scan: MriAcquisition, index: int, state: _State, geometry: MriGeometry, step: MriStep) -> _State:
    """Return k-space of a slice after one more step; a slice without any signal stays so."""
    kspace, silent = state.kspace, not state.kspace.any()
    match step:
        case CompressCoils(coils=coils):
            if silent:
                return _State(kspace[:coils], state.mixing[:coils])
            found = compression(kspace, virtual_coils=coils)
            return _State(found.apply(kspace, axis=0).astype(np.complex64), found.matrix @ state.mixing)
        case _ if silent:
            return state
        case Prewhiten():
            matrix = whitening_matrix(_covariance(scan, state, geometry, step))
            return _State(whitened(kspace, matrix, axis=0).astype(np.complex64), matrix @ state.mixing)
        case RegressInterference(window=window, kernel=kernel):
            assert isinstance(geometry, Cartesian)
            assert scan.interference is not None
            seen = np.asarray(scan.interference[index], dtype=np.complex64)
            _check_finite(scan, seen, f"the reference coils of slice {index}")
            # the filter runs along the readout, which is the axis that no lines are left out of
            across = geometry.phase_axis == 1
            left = without_interference(
                _lines(kspace, across),
                _lines(seen, across),
                _lines(geometry.sampled, across),
                window=window,
                kernel=kernel,
            )
            return _State(np.ascontiguousarray(_lines(left, across)), state.mixing)
        case GhostCorrection(order=order):
            assert isinstance(geometry, Cartesian)
            assert scan.navigators is not None
            assert scan.reversed_lines is not None
            lines = np.asarray(scan.navigators[index], dtype=np.complex64)
            _check_finite(scan, lines, f"the navigators of slice {index}")
            corrected = without_ghosts(kspace, scan.reversed_lines, ghost_phase(lines, order))
            return _State(corrected * geometry.sampled, state.mixing)
        case _:
            assert_never(step)


def _lines(values: _Values, across: bool) -> _Values:
    """Return values `(..., ky, kx)` with the readout last, or back again."""
    return values.swapaxes(-1, -2) if across else values


def _covariance(scan: MriAcquisition, state: _State, geometry: MriGeometry, step: Prewhiten) -> NDArray[np.complex128]:
    """Return the covariance of the noise of the coils on their way `(coil, coil)`."""
    if step.source == "edge" or scan.noise is None:
        return noise_covariance(state.kspace[:, outermost(geometry)])
    samples = np.asarray(scan.noise[:, :MAX_NOISE_SAMPLES], dtype=np.complex128)
    return noise_covariance(coil_combinations(samples, state.mixing, axis=0))


def _check_noise(scan: MriAcquisition, step: Prewhiten, said: str) -> None:
    if step.source == "edge":
        return
    if scan.noise is None:
        if step.source == "lines":
            raise BadInput(f"{said}: the scan has no noise lines", "Take the noise from the edge of k-space.")
        return
    if len(scan.noise.shape) != 2 or int(scan.noise.shape[0]) != scan.shape[1]:
        raise BadInput(
            f"{said}: noise lines of shape {tuple(scan.noise.shape)} are not (coil, sample) of {scan.shape[1]} coils",
            "Take the noise from the edge of k-space.",
        )


def _check_interference(scan: MriAcquisition, step: RegressInterference, said: str) -> None:
    if scan.interference is None:
        raise BadInput(f"{said}: the scan has no reference coils", "Leave it out, or say which data are theirs.")
    if not isinstance(scan.geometry, Cartesian):
        raise BadInput(f"{said} is there for Cartesian sampling only", "Leave it out.")
    slices, _, rows, columns = scan.shape
    shape = tuple(int(size) for size in scan.interference.shape)
    if len(shape) != 4 or (shape[0], *shape[2:]) != (slices, rows, columns):
        raise BadInput(f"{said}: reference coils of shape {shape} do not fit k-space of shape {scan.shape}")
    readout = (rows, columns)[1 - scan.geometry.phase_axis]
    if step.kernel % 2 == 0 or step.kernel > readout:
        raise BadInput(f"{said}: a kernel of {step.kernel} must be odd and at most the {readout} samples of a line")
    unknowns = shape[1] * step.kernel
    if step.window * readout < SAMPLES_PER_UNKNOWN * unknowns:
        raise BadInput(
            f"{said}: {step.window} lines of {readout} samples are too few for {unknowns} unknowns",
            "Let more lines share a prediction, or take a smaller kernel.",
        )


def _check_navigators(scan: MriAcquisition, said: str) -> None:
    if scan.navigators is None:
        raise BadInput(f"{said}: the scan has no navigator lines", "Leave it out.")
    if scan.reversed_lines is None:
        raise BadInput(f"{said}: the scan does not say which lines were read out backwards", "Leave it out.")
    if not isinstance(scan.geometry, Cartesian):
        raise BadInput(f"{said} is there for Cartesian sampling only", "Leave it out.")
    slices, _, rows, columns = scan.shape
    shape = tuple(int(size) for size in scan.navigators.shape)
    if len(shape) != 4 or (shape[0], shape[3]) != (slices, columns) or shape[1] < 2:
        raise BadInput(
            f"{said}: navigators of shape {shape} are not (slice, readout, coil, kx) of {slices} slices, two readouts"
            f" or more, and {columns} samples"
        )
    if scan.reversed_lines.shape != (rows,):
        raise BadInput(f"{said}: {scan.reversed_lines.size} directions of lines do not fit {rows} lines")


def _check_finite(scan: MriAcquisition, values: ComplexArray, what: str) -> None:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise BadInput(f"{scan.path.name}: {bad} values of {what} are not finite", "Export the raw data again.")
