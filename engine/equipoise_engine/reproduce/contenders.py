"""The methods that are compared: how each is built and trained, and what it makes of the test measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from equipoise_engine.classical import Reconstructed, total_variation, wavelet
from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.equilibrium import BackwardReport, BackwardSettings, ForwardSettings
from equipoise_engine.fbp import angular_weights, filter_rows, ramp_spectrum
from equipoise_engine.finetune import TrainSettings
from equipoise_engine.fixed_point import build_map
from equipoise_engine.measured import Measured
from equipoise_engine.metrics import psnr
from equipoise_engine.model import Architecture, EquilibriumModel
from equipoise_engine.objective import Objective
from equipoise_engine.operators import Physics
from equipoise_engine.progress import Watch, unwatched
from equipoise_engine.reproduce.presets import CONTROL, Preset
from equipoise_engine.reproduce.problem import Problem
from equipoise_engine.solve import Anderson, Iterate, Outcome, Solution, Stop, begin, solve

STRENGTHS = tuple(10 ** (power / 4) for power in range(-16, 1))
"""Of the classical prior, from which the best is taken."""
STEP_LENGTHS = (0.25, 0.5, 1.0, 1.5, 1.9)
"""Of proximal gradient plug-and-play."""
PRIOR_WEIGHTS = tuple(10 ** (power / 2) for power in range(-6, 2))
"""Of regularisation by denoising."""
EARLY = (1e-2, 1e-3)
"""Tolerances of plug-and-play beside that of the test: without training in the loop, stopping early is often best."""


@dataclass(frozen=True)
class Tested:
    """What a method made of the test measurements.

    Parameters
    ----------
    images
        `(image, y, x)`.
    residual, residuals
        Fixed-point residual of each image `(image,)` and after each step `(step, image)`; None without an iteration.
    converged
        Share of the images whose iteration reached its tolerance; None without one.
    chosen
        What an oracle chose, by name.
    """

    images: Tensor
    residual: Tensor | None = None
    residuals: Tensor | None = None
    converged: float | None = None
    chosen: dict[str, float | str] = field(default_factory=dict)


class DirectModel(EquilibriumModel):
    """f(y) = D(direct image of y): one pass of the network that the others iterate, with the same parameters.

    Source: K. H. Jin, M. T. McCann, E. Froustey, M. Unser 2017, arXiv:1611.03679; by equivariant imaging:
    arXiv:2103.14756.
    """

    def forward(
        self,
        y: Tensor,
        physics: Physics,
        *,
        strength: float = 1.0,
        solver: ForwardSettings | None = None,
        backward: BackwardSettings | None = None,
        report: BackwardReport | None = None,
        start: Tensor | Iterate | None = None,
        watch: Watch = unwatched,
        measure: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Solution]:
        """Return the reconstruction `(batch, y, x)`, and that one step found it; there is nothing else to choose."""
        value = self.denoise(direct_image(physics, y))
        batch = y.shape[0]
        zero = torch.zeros(batch, dtype=torch.float64, device=y.device)
        once = torch.ones(batch, dtype=torch.int64, device=y.device)
        last = begin(value.detach(), Anderson(memory=0))
        return value, Solution(value.detach(), (Outcome.CONVERGED,) * batch, zero, zero[None], once, last)


def direct_image(physics: Physics, y: Tensor) -> Tensor:
    """Return the analytic image `(batch, y, x)`, differentiable in y.

    For CT the back-projection is the transpose of the projector, not the interpolating one of `fbp`, whose own
    transpose is not at hand.
    """
    if not isinstance(physics, TomographyPhysics):
        return physics.analytic(y)
    arcs = torch.from_numpy(angular_weights(physics.geometry.angle_rad)).to(y.device, y.dtype)
    filtered = filter_rows(y * arcs[:, None], torch.from_numpy(ramp_spectrum(y.shape[-1])))
    return physics.adjoint(filtered) / physics.geometry.pixel_mm**2


def build_model(method: str, preset: Preset) -> EquilibriumModel:
    """Return the untrained model of a learned method; all have the same parameters by name and shape."""
    architecture = Architecture(image_channels=2 if preset.modality == "mri" else 1, widths=preset.widths)
    return DirectModel(architecture) if method == "ei-unet" else EquilibriumModel(architecture)


def train_settings(method: str, preset: Preset) -> TrainSettings:
    """Return how a learned method is trained; they differ in what the table says, and in nothing else."""
    backward = BackwardSettings(max_steps=preset.backward_steps)
    data_term, weight, contraction = "r2r", preset.equivariance_weight, preset.contraction_weight
    match method:
        case "ei-unet":
            contraction = 0.0  # there is no fixed point to keep unique
        case "ei-unrolled":
            backward, contraction = BackwardSettings(mode="unrolled", max_steps=preset.unrolled_steps), 0.0
        case "deq-ei-jfb":
            backward = BackwardSettings(mode="jacobian-free")
        case "deq-sup-id":
            data_term, weight = "supervised", 0.0
        case "deq-es-id":
            data_term, weight = "equivariant-splitting", 0.0
        case _ if method == CONTROL:
            weight = 0.0
        case _:
            pass
    return TrainSettings(
        steps=preset.steps,
        learning_rate=preset.learning_rate,
        batch=preset.batch,
        objective=Objective(data_term, weight),
        contraction_weight=contraction,
        forward=ForwardSettings(stop=Stop(preset.tolerance, preset.max_steps)),
        backward=backward,
    )


@torch.no_grad()
def reconstruct(
    model: EquilibriumModel, measured: Measured, backward: BackwardSettings, *, tolerance: float, max_steps: int
) -> Tested:
    """Return what a model makes of measurements; `backward` tells whether it is an unrolled one."""
    forward = ForwardSettings(stop=Stop(tolerance, max_steps))
    value, solution = model(measured.y, measured.physics, solver=forward, backward=backward)
    return _tested(value, solution)


def run_classical(method: str, problem: Problem, preset: Preset) -> Tested:
    """Return what a method without a network makes of the test; its strength is the best for these very images."""
    y, physics = problem.test.y, problem.test.physics

    def solved(strength: float) -> Reconstructed:
        if method == "tv":
            return total_variation(
                physics, y, strength=strength, tolerance=1e-4, max_steps=preset.classical_steps, nonnegative=True
            )
        return wavelet(physics, y, strength=strength, tolerance=1e-4, max_steps=preset.classical_steps)

    if method in ("fbp", "zerofilled"):
        return Tested(physics.analytic(y))
    return _best(((Tested(solved(strength).image, chosen={"strength": strength})) for strength in STRENGTHS), problem)


@torch.no_grad()
def run_plug_and_play(model: EquilibriumModel, problem: Problem, preset: Preset) -> Tested:
    """Return the best of proximal gradient and RED with the denoiser as it is, over their weights and stopping.

    Source: S. V. Venkatakrishnan, C. A. Bouman, B. Wohlberg 2013, doi:10.1109/GlobalSIP.2013.6737048; RED:
    arXiv:1611.02862.
    """
    y, physics = problem.test.y, problem.test.physics

    def solved(kind: str, weight: float, tolerance: float) -> Tested:
        on_device = torch.tensor(weight, device=y.device)
        function = build_map(kind, physics, model.denoise, lambda: on_device, symmetric=False)
        solution = solve(
            lambda x, samples: function.select(samples).step(x, y[samples]),
            physics.analytic(y),
            stop=Stop(tolerance, preset.classical_steps),
        )
        return replace(
            _tested(solution.value, solution), chosen={"map": kind, "weight": weight, "tolerance": tolerance}
        )

    pairs = [("pgd", length) for length in STEP_LENGTHS] + [("red", weight) for weight in PRIOR_WEIGHTS]
    tolerances = (*EARLY, preset.test_tolerance)
    return _best((solved(*pair, tolerance) for pair in pairs for tolerance in tolerances), problem)


def _tested(value: Tensor, solution: Solution) -> Tested:
    converged = sum(outcome is Outcome.CONVERGED for outcome in solution.outcomes) / len(solution.outcomes)
    return Tested(value, solution.residual, solution.residuals, converged)


def _best(candidates: Iterable[Tested], problem: Problem) -> Tested:
    """Return the candidate of the highest mean PSNR against the truth."""
    finite = [tested for tested in candidates if bool(torch.isfinite(tested.images.abs()).all())]
    return max(finite, key=lambda tested: float(np.mean(psnr(tested.images, problem.truth, problem.data_range))))
