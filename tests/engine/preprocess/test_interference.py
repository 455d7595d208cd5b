"""Interference is taken out as reference coils predict it, and the object's signal is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.interference import without_interference
from equipoise_engine.preprocess.kspace import to_image
from equipoise_engine.recipe import RegressInterference

Complex = NDArray[np.complex128]
LINES, READOUT = 48, 96
WHOLE = np.ones((LINES, READOUT), dtype=np.bool_)


def _noise(*shape: int, seed: int = 0) -> Complex:
    parts = np.random.default_rng(seed).normal(size=(2, *shape))
    return np.asarray((parts[0] + 1j * parts[1]) / np.sqrt(2))


def _signal() -> Complex:
    """Two coils of an echo that is far above everything else in the middle of k-space."""
    ky, kx = np.arange(LINES)[:, None] - LINES // 2, np.arange(READOUT) - READOUT // 2
    return np.array([1.0, 0.6j])[:, None, None] * 200 * np.exp(-(ky**2) / 8 - kx**2 / 60)


def _interfered(change: float = 0.0) -> tuple[Complex, Complex, Complex]:
    """Signal and noise, what interferes with them, and what three references see of it, mixed by filters."""
    sources = 10 * _noise(2, LINES, READOUT + 8, seed=1)
    coupling = np.exp(1j * change * np.arange(LINES))[:, None]

    def through(filters: Complex) -> Complex:
        parts = [filters[:, i, j, None, None] * sources[i, :, j : j + READOUT] for i in range(2) for j in range(3)]
        return np.asarray(sum(parts))

    seen = coupling * through(_noise(2, 2, 3, seed=2))
    # the references see each source at once, the receive coils with its echoes
    references = np.tensordot(_noise(3, 2, seed=3), sources[:, :, 1 : READOUT + 1], 1)
    return _signal() + _noise(2, LINES, READOUT, seed=4), seen, references + 0.01 * _noise(*references.shape, seed=5)


def _left(found: NDArray[np.complex64], wanted: Complex, seen: Complex) -> float:
    # what came before the first sample and after the last one is not known
    inner = np.s_[..., 1:-1]
    return float(np.linalg.norm((found - wanted)[inner]) / np.linalg.norm(seen[inner]))


def test_interference_is_predicted_through_a_filter() -> None:
    wanted, seen, references = _interfered()
    whole = without_interference(wanted + seen, references, WHOLE, window=16, kernel=3)
    assert whole.dtype == np.complex64
    assert _left(whole, wanted, seen) < 0.02
    # one sample cannot tell what came before and after it
    assert _left(without_interference(wanted + seen, references, WHOLE, window=16, kernel=1), wanted, seen) > 0.3


def test_the_signal_is_not_taken_for_interference() -> None:
    wanted, seen, references = _interfered()
    found = without_interference(wanted + seen, references, WHOLE, window=2, kernel=3)
    middle = np.s_[:, LINES // 2 - 2 : LINES // 2 + 2]
    assert np.linalg.norm((found - wanted)[middle]) < 0.05 * np.linalg.norm(wanted[middle])


def test_coupling_that_changes_needs_few_lines() -> None:
    wanted, seen, references = _interfered(change=0.2)
    left = {
        window: _left(without_interference(wanted + seen, references, WHOLE, window=window, kernel=3), wanted, seen)
        for window in (1, 48)
    }
    assert left[1] < 0.15
    assert left[48] > 0.8


def test_what_was_not_measured_stays_so() -> None:
    wanted, seen, references = _interfered()
    sampled = WHOLE.copy()
    sampled[1::2] = False
    sampled[:, :10] = False
    found = without_interference((wanted + seen) * sampled, references, sampled, window=8, kernel=3)
    assert not found[:, ~sampled].any()
    assert _left(found, wanted * sampled, seen * sampled) < 0.02
    nothing = np.zeros_like(WHOLE)
    assert not without_interference(0 * wanted, references, nothing, window=8, kernel=3).any()


def test_references_may_be_copies_or_silent() -> None:
    wanted, seen, references = _interfered()
    more = np.concatenate([references, references[:1], 0 * references[:1]])
    expected = without_interference(wanted + seen, references, WHOLE, window=16, kernel=3)
    found = without_interference(wanted + seen, more, WHOLE, window=16, kernel=3)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    silent = without_interference(wanted, 0 * references, WHOLE, window=16, kernel=3)
    np.testing.assert_allclose(silent, wanted.astype(np.complex64))
    # what is nothing but interference is gone, without any noise that could scale the weights
    exact = without_interference(references[:1], references, WHOLE, window=16, kernel=1)
    assert np.abs(exact).max() < 1e-3


def test_what_does_not_fit_is_refused() -> None:
    wanted, _, references = _interfered()
    with pytest.raises(BadInput, match=r"kernel of 4 samples must be odd and at most the 96"):
        without_interference(wanted, references, WHOLE, window=8, kernel=4)
    with pytest.raises(BadInput, match=r"1 lines have 96 samples for 93 unknowns.* at least 186"):
        without_interference(wanted, references, WHOLE, window=1, kernel=31)
    with pytest.raises(BadInput, match="do not fit k-space"):
        without_interference(wanted, references[:, :-1], WHOLE, window=8, kernel=3)
    with pytest.raises(BadInput, match="0 lines"):
        without_interference(wanted, references, WHOLE, window=0, kernel=3)


def _likeness(kspace: Complex) -> float:
    """Mean of the object over the spread beside it, in rows that both cross, of the slice below."""
    image = np.abs(to_image(kspace, (0, 1)))
    beside = np.concatenate([image[190:300, 72:].ravel(), image[190:300, :12].ravel()])
    return float(image[215:285, 25:50].mean() / np.sqrt(np.mean(beside**2) / 2))


def test_a_measured_brain_comes_out_of_broadband_interference(shared_data: Path) -> None:
    file = scipy.io.loadmat(shared_data / "mri-lowfield-editer" / "data_BBEMI_2D_brainslice.mat")
    # samples of the readout go down the rows of this file, and lines across
    kspace = file["datafft"]
    references = np.stack([file[f"datanoise_fft_{number}"].T for number in range(1, 6)])
    whole = np.ones(references.shape[1:], dtype=np.bool_)

    def after(window: int, kernel: int) -> float:
        return _likeness(without_interference(kspace.T[None], references, whole, window=window, kernel=kernel)[0].T)

    usual = RegressInterference()
    before, found = _likeness(kspace), after(usual.window, usual.kernel)
    assert before < 3.0
    assert found > 9.5
    # no other choice is much better, and one sample alone is worse
    assert max(after(8, 7), after(101, 7), after(16, 11)) < 1.02 * found
    assert after(16, 1) < 0.9 * found
