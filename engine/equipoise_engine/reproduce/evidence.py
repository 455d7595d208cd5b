"""Evidence for and against the claims about a trained model: proximal map, equivariance, contraction, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equipoise_engine.diagnostics import (
    ProximalSettings,
    contraction,
    equivariance_error,
    equivariance_gap,
    error_parts,
    gradient_cosines,
    plain,
    proximal_report,
    quarter_turns_and_flips,
    rotations,
    start_sensitivity,
)
from equipoise_engine.equilibrium import BackwardSettings, ForwardSettings
from equipoise_engine.measured import Measured
from equipoise_engine.model import EquilibriumModel
from equipoise_engine.objective import Objective, evaluate
from equipoise_engine.operators import Physics
from equipoise_engine.reproduce.presets import Preset
from equipoise_engine.reproduce.problem import Problem
from equipoise_engine.solve import Stop

ANGLES_RAD = (0.12, 0.61, 1.1, 2.3, 3.7)
"""Of the interpolated rotations; no multiples of the step of the views."""
POINTS = 4
"""Images at which Jacobians are taken."""


def of_denoiser(model: EquilibriumModel, points: Tensor, seed: int) -> dict[str, Any]:
    """Return the properties of D at images `(image, y, x)`: is it a proximal map, is it equivariant."""
    generator = torch.Generator().manual_seed(seed)
    few = points[:POINTS]
    settings = ProximalSettings(probes=4, steps=24, cycles=12, loops=4)
    report = proximal_report(model.denoise, few, generator, transforms=quarter_turns_and_flips()[:1], settings=settings)
    errors = equivariance_error(model.denoise, few, _transforms())
    return _record({"proximal": report, "denoiser_equivariance": errors})


def of_model(model: EquilibriumModel, problem: Problem, x_hat: Tensor, preset: Preset) -> dict[str, Any]:
    """Return the properties of f: equivariance with and without truth, contraction, uniqueness, kinds of error.

    Parameters
    ----------
    x_hat
        f(y) of the test `(image, y, x)`.
    """
    few = problem.test.select(torch.arange(min(POINTS, preset.test_images), device=x_hat.device))
    physics, x_few = few.physics, x_hat[:POINTS]
    solver = ForwardSettings(stop=Stop(preset.test_tolerance, preset.test_max_steps))

    def reconstruct(image: Tensor) -> Tensor:
        value: Tensor = model(physics.forward(image), physics, solver=solver)[0]
        return value

    def solve_from(start: Tensor) -> Tensor:
        value: Tensor = model(few.y, physics, solver=solver, start=start)[0]
        return value

    with torch.no_grad():
        assert few.truth is not None
        function = model.map(physics)
        starts = [physics.analytic(few.y), torch.zeros_like(x_few), few.truth]
        generator = torch.Generator().manual_seed(0)
        found = {
            "equivariance": equivariance_error(reconstruct, few.truth, _transforms(), seen=physics.seen),
            "equivariance_gap": equivariance_gap(reconstruct, x_few, _transforms(), seen=physics.seen),
            "contraction": contraction(lambda x: function.step(x, few.y), x_few, generator, steps=24),
            "start_sensitivity": start_sensitivity(solve_from, starts),
            "error_parts": error_parts(x_hat, problem.truth, problem.test.physics),
        }
    return _record(found)


def of_gradients(model: EquilibriumModel, training: Measured, preset: Preset, draws: int = 3) -> dict[str, Any]:
    """Return cosine and norm ratio of each backward mode's gradient of the training loss to the exact one.

    Exact is an implicit gradient at 1e-4 on a fixed point found to 1e-5, or to what single precision allows.
    """
    modes = {
        "exact": BackwardSettings(tolerance=1e-4, max_steps=8 * preset.backward_steps),
        "implicit": BackwardSettings(max_steps=preset.backward_steps),
        "neumann": BackwardSettings(mode="neumann", max_steps=5),
        "jacobian-free": BackwardSettings(mode="jacobian-free"),
    }
    solver = ForwardSettings(stop=Stop(1e-5, preset.test_max_steps))

    def gradient(backward: BackwardSettings, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(training.y.shape[0], generator=generator)[: preset.batch]
        drawn = training.select(chosen.to(training.y.device))

        def reconstruct(y: Tensor, physics: Physics, copies: int = 1) -> Tensor:
            value: Tensor = model(y, physics, solver=solver, backward=backward)[0]
            return value

        found = evaluate(Objective("r2r", preset.equivariance_weight), drawn, reconstruct, generator)
        loss = found.data + preset.equivariance_weight * found.equivariance
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in gradients])

    def of_mode(backward: BackwardSettings) -> Callable[[], Tensor]:
        return lambda: torch.stack([gradient(backward, seed) for seed in range(draws)])

    cosines = gradient_cosines({name: of_mode(backward) for name, backward in modes.items()}, "exact")
    return _record({name: entry for name, entry in cosines.items() if name != "exact"})


def _transforms() -> dict[str, Any]:
    return {"quarter turns and flips": quarter_turns_and_flips(), "rotations": rotations(ANGLES_RAD)}


def _record(found: dict[str, Any]) -> dict[str, Any]:
    record = plain(found)
    assert isinstance(record, dict)
    return record
