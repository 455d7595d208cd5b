"""The simulated data: a fixed set of measurements to train on, and others to test on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.measured import Measured
from equipoise_engine.mri import CartesianPhysics
from equipoise_engine.phantoms import random_coil_maps, random_phase, simulate_kspace, tissue_images
from equipoise_engine.reproduce.presets import Preset


@dataclass(frozen=True)
class Problem:
    """Measurements of other objects for training and for testing, by the same physics.

    Parameters
    ----------
    training, test
        With the true images `(image, y, x)`, which training without ground truth does not read.
    data_range
        Largest magnitude in the images of the test.
    """

    training: Measured
    test: Measured
    data_range: float

    @property
    def truth(self) -> Tensor:
        """The true images of the test `(image, y, x)`."""
        return _known(self.test)


def build(preset: Preset, device: torch.device) -> Problem:
    """Return the data of a preset; the same on every machine, up to rounding."""
    generator = torch.Generator().manual_seed(preset.data_seed)
    count = preset.training_images + preset.test_images
    everything = (
        _measure_mri(preset, count, generator) if preset.modality == "mri" else _measure_ct(preset, count, generator)
    )
    physics, truth = everything.physics.to(device), _known(everything).to(device)
    everything = Measured(everything.y.to(device), physics, everything.view_step_rad, everything.noise, truth)
    training = everything.select(torch.arange(preset.training_images, device=device))
    test = everything.select(torch.arange(preset.training_images, count, device=device))
    return Problem(training, test, float(_known(test).abs().max()))


def _known(measured: Measured) -> Tensor:
    assert measured.truth is not None
    return measured.truth


def _measure_ct(preset: Preset, count: int, generator: torch.Generator) -> Measured:
    """Measure objects on a grid twice as fine as that of the images, whose truth is the mean of its pixels."""
    side, views = preset.side, preset.views
    angles = np.linspace(0, np.pi, views, endpoint=False)
    fine = TomographyPhysics(ParallelBeam(angles, 0.5, side - 0.5), 2 * side)
    objects = tissue_images(count, 2 * side, generator)
    sinograms = fine(objects).reshape(count, views, side, 2).mean(-1)
    noise = preset.noise * float(sinograms.max())
    sinograms = sinograms + noise * torch.randn(sinograms.shape, generator=generator)
    truth = torch.nn.functional.avg_pool2d(objects[:, None], 2)[:, 0]
    physics = TomographyPhysics(ParallelBeam(angles, 1.0, (side - 1) / 2), side)
    return Measured(sinograms, physics, math.pi / views, noise, truth)


def _measure_mri(preset: Preset, count: int, generator: torch.Generator) -> Measured:
    """Measure complex objects by the operator of the reconstruction itself, at random lines and those in the middle."""
    side = preset.side
    truth = tissue_images(count, side, generator) * random_phase(count, side, generator)
    maps = random_coil_maps(preset.coils, side, generator)
    mask = random_lines(side, preset.acceleration, preset.centre_lines, generator)
    kspace = simulate_kspace(truth, maps, preset.noise, generator) * mask
    return Measured(kspace, CartesianPhysics(maps[None], mask), noise=preset.noise, truth=truth)


def random_lines(side: int, acceleration: int, centre_lines: int, generator: torch.Generator) -> Tensor:
    """Draw which positions `(ky, kx)` are sampled, bool: `side / acceleration` rows, those in the middle among them.

    Source: F. Knoll et al. 2020, doi:10.1148/ryai.2020190007 (the random masks of fastMRI).
    """
    first = side // 2 - centre_lines // 2
    kept = torch.zeros(side, dtype=torch.bool)
    kept[first : first + centre_lines] = True
    others = torch.nonzero(~kept)[:, 0]
    chosen = torch.randperm(others.shape[0], generator=generator)[: max(0, round(side / acceleration) - centre_lines)]
    kept[others[chosen]] = True
    return kept[:, None].expand(side, side).contiguous()
