"""The steps of a recipe for k-space: which are usual, which are refused and why, and what they do to a slice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.geometry import Cartesian, NonCartesian
from equipoise_engine.preprocess.compression import compression
from equipoise_engine.preprocess.ghosts import ghost_phase, without_ghosts
from equipoise_engine.preprocess.interference import without_interference
from equipoise_engine.preprocess.kspace_steps import (
    check_kspace_steps,
    default_kspace_steps,
    noise_correlation,
    prepared_coils,
    prepared_kspace,
)
from equipoise_engine.preprocess.whitening import noise_covariance, outermost, whitened, whitening_matrix
from equipoise_engine.recipe import (
    CompressCoils,
    GhostCorrection,
    NegativeLog,
    Prewhiten,
    Recipe,
    RegressInterference,
    Step,
)

SLICES, COILS, ROWS, COLUMNS = 3, 4, 32, 40
SHAPE = (SLICES, COILS, ROWS, COLUMNS)
MIXING = np.linalg.cholesky(np.eye(COILS) + 0.4 * (np.ones((COILS, COILS)) + 0.5j * np.tri(COILS, k=-1)).real)


def _noise(*shape: int, seed: int = 0) -> NDArray[np.complex64]:
    parts = np.random.default_rng(seed).normal(size=(2, *shape))
    return np.asarray((parts[0] + 1j * parts[1]) / np.sqrt(2), dtype=np.complex64)


def _scan(*, phase_axis: int = 0, steps: tuple[Step, ...] | None = None, **parts: object) -> MriAcquisition:
    ky, kx = np.arange(ROWS)[:, None] - ROWS // 2, np.arange(COLUMNS) - COLUMNS // 2
    echo = 100 * np.exp(-(ky**2) / 10 - kx**2 / 20) * np.array([1.0, 0.7j, -0.3, 0.5 - 0.2j])[:, None, None]
    kspace = np.einsum("cd,sdyx->scyx", MIXING, _noise(*SHAPE)) + echo
    return MriAcquisition(
        path=Path("brain.dat"),
        format="test",
        kspace=kspace.astype(np.complex64),
        geometry=Cartesian(np.ones((ROWS, COLUMNS), dtype=np.bool_), (32.0, 40.0), phase_axis=phase_axis),
        recipe=Recipe(steps=steps),
        **parts,  # type: ignore[arg-type]
    )


def _epi(**more: object) -> MriAcquisition:
    reversed_lines = np.arange(ROWS) % 2 == 1
    return _scan(navigators=_noise(SLICES, 3, COILS, COLUMNS, seed=3), reversed_lines=reversed_lines, **more)  # type: ignore[arg-type]


def _prepared(scan: MriAcquisition, *, stage: int | None = None) -> NDArray[np.complex64]:
    return prepared_kspace(scan, range(scan.slices), np.asarray(scan.kspace), scan.geometry, stage)


def test_what_was_measured_beside_kspace_is_used() -> None:
    assert default_kspace_steps(_scan(noise=_noise(COILS, 400))) == ()
    assert default_kspace_steps(_epi()) == (GhostCorrection(),)
    forward = replace(_epi(), reversed_lines=np.zeros(ROWS, dtype=np.bool_))
    assert default_kspace_steps(forward) == ()
    both = replace(_epi(), interference=_noise(SLICES, 2, ROWS, COLUMNS))
    assert default_kspace_steps(both) == (RegressInterference(), GhostCorrection())
    check_kspace_steps(both, default_kspace_steps(both))
    np.testing.assert_array_equal(
        _prepared(both), _prepared(replace(both, recipe=Recipe(steps=default_kspace_steps(both))))
    )
    none = replace(both, recipe=Recipe(steps=()))
    assert _prepared(none) is none.kspace


@pytest.mark.parametrize(
    ("scan", "steps", "said"),
    [
        (_scan(), (NegativeLog(),), r"brain\.dat: step 1 \(log\) is one for projections"),
        (_scan(), (Prewhiten(), GhostCorrection()), r"step 2 \(ghost\): the scan has no navigator lines"),
        (_scan(), (RegressInterference(),), r"step 1 \(interference\): the scan has no reference coils"),
        (_scan(), (CompressCoils(coils=5),), r"step 1 \(compress\): 5 virtual coils are outside 1 to 4"),
        (_scan(), (CompressCoils(coils=2), CompressCoils(coils=2)), r"step 2 \(compress\) stands twice"),
        (_scan(), (Prewhiten(source="lines"),), r"step 1 \(prewhiten\): the scan has no noise lines"),
        (_scan(noise=_noise(3, 400)), (Prewhiten(),), r"noise lines of shape \(3, 400\)"),
        (replace(_epi(), reversed_lines=None), (GhostCorrection(),), "does not say which lines"),
        (_epi(), (Prewhiten(), Prewhiten(source="edge")), "stands twice"),
        (
            replace(_epi(), navigators=_noise(SLICES, 3, COILS, COLUMNS - 1)),
            (GhostCorrection(),),
            r"navigators of shape \(3, 3, 4, 39\)",
        ),
        (replace(_epi(), reversed_lines=np.ones(5, dtype=np.bool_)), (GhostCorrection(),), "5 directions of lines"),
        (
            _scan(interference=_noise(SLICES, 2, ROWS, COLUMNS - 1)),
            (RegressInterference(),),
            r"reference coils of shape \(3, 2, 32, 39\)",
        ),
        (
            _scan(interference=_noise(SLICES, 2, ROWS, COLUMNS)),
            (RegressInterference(kernel=4),),
            r"kernel of 4 must be odd and at most the 40 samples",
        ),
        (
            _scan(interference=_noise(SLICES, 2, ROWS, COLUMNS), phase_axis=1),
            (RegressInterference(window=1, kernel=31),),
            r"1 lines of 32 samples are too few for 62 unknowns",
        ),
    ],
)
def test_steps_that_do_not_suit_the_scan_are_refused(scan: MriAcquisition, steps: tuple[Step, ...], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        check_kspace_steps(scan, steps)
    with pytest.raises(BadInput, match=said):
        _prepared(replace(scan, recipe=Recipe(steps=steps)))


def test_steps_for_cartesian_sampling_are_refused_elsewhere() -> None:
    trajectory = np.zeros((ROWS, COLUMNS, 2))
    spokes = NonCartesian(trajectory, (40, 40), (40.0, 40.0))
    scan = replace(_epi(), geometry=spokes, interference=_noise(SLICES, 2, ROWS, COLUMNS))
    for step in (GhostCorrection(), RegressInterference()):
        with pytest.raises(BadInput, match="Cartesian sampling only"):
            check_kspace_steps(scan, (step,))


def test_whitening_takes_noise_lines_or_the_edge() -> None:
    noise = (MIXING @ _noise(COILS, 4000, seed=7)).astype(np.complex64)
    with_lines = _scan(noise=noise, steps=(Prewhiten(),))
    expected = whitened(with_lines.kspace[1], whitening_matrix(noise_covariance(noise)), axis=0)
    np.testing.assert_allclose(_prepared(with_lines)[1], expected, rtol=1e-5, atol=1e-5)
    assert np.cov(_prepared(with_lines)[1][:, outermost(with_lines.geometry)]) == pytest.approx(np.eye(COILS), abs=0.4)
    for scan in (
        replace(with_lines, recipe=Recipe(steps=(Prewhiten(source="edge"),))),
        replace(with_lines, noise=None),
    ):
        covariance = noise_covariance(scan.kspace[1][:, outermost(scan.geometry)])
        edge = whitened(scan.kspace[1], whitening_matrix(covariance), axis=0)
        np.testing.assert_array_equal(_prepared(scan)[1], edge.astype(np.complex64))


def test_noise_lines_follow_the_coils() -> None:
    noise = (MIXING @ _noise(COILS, 4000, seed=7)).astype(np.complex64)
    scan = _scan(noise=noise, steps=(CompressCoils(coils=3), Prewhiten(source="lines")))
    matrix = compression(scan.kspace[0], virtual_coils=3).matrix
    fewer = (matrix @ noise).astype(np.complex64)
    expected = whitened(
        (matrix @ scan.kspace[0].reshape(COILS, -1)), whitening_matrix(noise_covariance(fewer)), axis=0
    ).reshape(3, ROWS, COLUMNS)
    np.testing.assert_allclose(_prepared(scan)[0], expected, rtol=1e-4, atol=1e-4)
    assert prepared_coils(scan) == 3
    assert prepared_coils(_scan()) == COILS


def test_compression_follows_whitening() -> None:
    scan = _scan(steps=(Prewhiten(), CompressCoils(coils=2)))
    covariance = noise_covariance(scan.kspace[2][:, outermost(scan.geometry)])
    white = whitened(scan.kspace[2], whitening_matrix(covariance), axis=0)
    expected = compression(white, virtual_coils=2).apply(white, axis=0)
    np.testing.assert_array_equal(_prepared(scan)[2], expected)


def test_interference_goes_along_the_readout() -> None:
    references = _noise(SLICES, 2, ROWS, COLUMNS, seed=9)
    step = RegressInterference(window=8, kernel=3)
    for phase_axis in (0, 1):
        scan = _scan(interference=references, phase_axis=phase_axis, steps=(step,))

        def lines(values: NDArray[np.complex64], axis: int = phase_axis) -> NDArray[np.complex64]:
            return values.swapaxes(-1, -2) if axis == 1 else values

        sampled = np.ones(lines(scan.kspace[1, 0]).shape, dtype=np.bool_)
        expected = lines(without_interference(lines(scan.kspace[1]), lines(references[1]), sampled, window=8, kernel=3))
        np.testing.assert_array_equal(_prepared(scan)[1], expected)


def test_ghosts_are_corrected_slice_by_slice() -> None:
    scan = _epi(steps=(GhostCorrection(order="pointwise"),))
    assert scan.navigators is not None
    assert scan.reversed_lines is not None
    expected = without_ghosts(scan.kspace[1], scan.reversed_lines, ghost_phase(scan.navigators[1], "pointwise"))
    np.testing.assert_array_equal(_prepared(scan)[1], expected)
    sampled = np.ones((ROWS, COLUMNS), dtype=np.bool_)
    sampled[:, :6] = False
    part = replace(scan.geometry, sampled=sampled)
    cut = prepared_kspace(scan, (1,), scan.kspace[1:2] * sampled, part)
    assert not cut[..., :6].any()
    assert cut[..., 6:].any()


def test_no_slice_depends_on_others_and_an_empty_one_stays_empty() -> None:
    steps = (RegressInterference(kernel=3), GhostCorrection(), Prewhiten(), CompressCoils(coils=2))
    scan = _epi(steps=steps, interference=_noise(SLICES, 2, ROWS, COLUMNS))
    scan.kspace[0] = 0
    whole = _prepared(scan)
    assert whole.shape == (SLICES, 2, ROWS, COLUMNS)
    assert whole.dtype == np.complex64
    assert not whole[0].any()
    for index in range(SLICES):
        alone = prepared_kspace(scan, (index,), scan.kspace[index : index + 1], scan.geometry)
        np.testing.assert_array_equal(alone[0], whole[index])


def test_stages_are_those_before() -> None:
    steps = (GhostCorrection(), Prewhiten(), CompressCoils(coils=2))
    scan = _epi(steps=steps)
    for stage in range(len(steps) + 1):
        shorter = replace(scan, recipe=Recipe(steps=steps[:stage]))
        np.testing.assert_array_equal(_prepared(scan, stage=stage), _prepared(shorter))
    for stage in (-1, 4):
        with pytest.raises(BadInput, match=f"no stage {stage}; its preparation has 3 steps"):
            _prepared(scan, stage=stage)


def test_values_that_are_not_finite_are_named() -> None:
    references = _noise(SLICES, 2, ROWS, COLUMNS)
    references[1, 0, 3, 3] = np.nan
    with pytest.raises(BadInput, match="1 values of the reference coils of slice 1 are not finite"):
        _prepared(_scan(interference=references))
    navigators = _noise(SLICES, 3, COILS, COLUMNS)
    navigators[2, 0, 0, :2] = np.inf
    with pytest.raises(BadInput, match="2 values of the navigators of slice 2 are not finite"):
        _prepared(replace(_epi(), navigators=navigators))


def test_how_alike_the_noise_is_can_be_looked_at() -> None:
    noise = (MIXING @ _noise(COILS, 20000, seed=7)).astype(np.complex64)
    known = np.abs(MIXING @ MIXING.T)
    known /= np.sqrt(np.outer(known.diagonal(), known.diagonal()))
    for steps in ((), (Prewhiten(),)):
        found = noise_correlation(_scan(noise=noise, steps=steps), 0)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, known, atol=0.03)
    fewer = noise_correlation(_scan(noise=noise, steps=(CompressCoils(coils=3), Prewhiten())), 0)
    assert fewer.shape == (3, 3)
    np.testing.assert_allclose(fewer.diagonal(), 1.0, rtol=1e-6)


def test_a_measured_brain_is_whitened_as_before(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "brain8ch_fastmri_like.h5")
    assert isinstance(scan, MriAcquisition)
    kspace = np.asarray(scan.kspace[0])
    matrix = whitening_matrix(noise_covariance(kspace[:, outermost(scan.geometry)]))
    white = whitened(kspace, matrix, axis=0)
    expected = compression(white, virtual_coils=4).apply(white, axis=0).astype(np.complex64)
    found = _prepared(replace(scan, recipe=Recipe(steps=(Prewhiten(), CompressCoils(coils=4)))))
    np.testing.assert_array_equal(found[0], expected)
