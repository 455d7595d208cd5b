"""Training by equivariant imaging: from measurements alone, interruptible at every step, and resumed bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from equipoise_engine.equilibrium import BackwardReport, BackwardSettings, ForwardSettings
from equipoise_engine.errors import BadInput, NumericalTrouble
from equipoise_engine.groups import rotation_angles
from equipoise_engine.losses import equivariance, measurement_consistency, recorrupt
from equipoise_engine.measured import Measured
from equipoise_engine.model import EquilibriumModel
from equipoise_engine.networks import as_channels, expansion
from equipoise_engine.operators import Physics
from equipoise_engine.progress import Cancelled, Progress, Watch, unwatched
from equipoise_engine.solve import Solution, Stop
from equipoise_engine.weights import Checkpoint


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Parameters
    ----------
    steps
        Optimiser steps in all, those of the checkpoint that is continued included; 0 leaves the limit to `seconds`.
    seconds
        Time limit; 0 leaves it to `steps`.
    contraction_weight, largest_gain
        Weight of the penalty on a denoiser that expands some direction at the reconstruction by more than
        `largest_gain`; it keeps the fixed point unique, in particular where the measurements say nothing.
    forward, backward
        How the solves of the training are done.
    """

    steps: int = 0
    seconds: float = 0.0
    learning_rate: float = 2e-4
    equivariance_weight: float = 1.0
    batch: int = 2
    seed: int = 0
    contraction_weight: float = 0.1
    largest_gain: float = 0.95
    forward: ForwardSettings = field(default_factory=lambda: ForwardSettings(stop=Stop(tolerance=1e-3, max_steps=40)))
    backward: BackwardSettings = field(default_factory=BackwardSettings)


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did."""

    terms: tuple[tuple[str, float], ...]
    forward_steps: float
    backward_steps: float
    unconverged: int


Source = Callable[[torch.Generator], Measured]
"""Draws the batch of one step."""


def draw_from(scans: tuple[Measured, ...], batch: int) -> Source:
    """Return a source that takes each step's slices at random from one of `scans`, larger scans more often."""
    sizes = torch.tensor([scan.y.shape[0] for scan in scans], dtype=torch.float64)

    def draw(generator: torch.Generator) -> Measured:
        scan = scans[int(torch.multinomial(sizes, 1, generator=generator))]
        available = scan.y.shape[0]
        chosen = torch.randperm(available, generator=generator)[: min(batch, available)]
        return scan.select(chosen)

    return draw


def training_step(
    model: EquilibriumModel,
    optimiser: torch.optim.Optimizer,
    drawn: Measured,
    settings: TrainSettings,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> StepReport:
    """Take one optimiser step on measurement consistency plus equivariance, and say what it did.

    Where the noise level is known, the measurements are recorrupted, so that their noise is not fitted.

    Raises
    ------
    NumericalTrouble
        The gradient is not finite; the weights are unchanged.
    """
    solves: list[Solution] = []
    report = BackwardReport()

    def reconstruct(y: Tensor, physics: Physics) -> Tensor:
        value, solution = model(
            y, physics, solver=settings.forward, backward=settings.backward, report=report, watch=watch
        )
        solves.append(solution)
        result: Tensor = value
        return result

    angles = rotation_angles(drawn.y.shape[0], generator, avoid_step_rad=drawn.view_step_rad, device=drawn.y.device)
    noise = None
    given, target = drawn.y, drawn.y
    if drawn.noise > 0:
        noise = drawn.noise * drawn.physics.noise_like(drawn.y, generator)
        given, target = recorrupt(drawn.y, drawn.noise * drawn.physics.noise_like(drawn.y, generator))
    x_hat = reconstruct(given, drawn.physics)
    consistency = measurement_consistency(x_hat, target, drawn.physics).mean()
    equivariant = equivariance(x_hat, drawn.physics, reconstruct, angles=angles, noise=noise).mean()
    one = as_channels(x_hat[:1].detach())
    direction = torch.randn(one.shape, generator=generator).to(one.device)
    gain, _ = expansion(model.denoiser, one, direction, steps=4)
    contraction = (gain - settings.largest_gain).clamp(min=0).square().mean()
    loss = consistency + settings.equivariance_weight * equivariant + settings.contraction_weight * contraction
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    size = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not bool(torch.isfinite(size)):
        raise NumericalTrouble(
            "the gradient of the training loss is not finite", "Lower the learning rate or start from other weights."
        )
    optimiser.step()
    forward = torch.cat([s.steps for s in solves]).double().mean()
    return StepReport(
        (
            ("total", float(loss.detach())),
            ("measurement consistency", float(consistency.detach())),
            ("equivariance", float(equivariant.detach())),
            ("contraction", float(contraction.detach())),
        ),
        float(forward),
        sum(report.steps) / max(1, len(report.steps)),
        report.unconverged,
    )


def finetune(
    start: Checkpoint,
    source: Source,
    settings: TrainSettings,
    *,
    manifest: dict[str, Any],
    device: torch.device,
    keep: Callable[[Checkpoint], None],
    keep_seconds: float = 30.0,
    watch: Watch = unwatched,
) -> Checkpoint:
    """Train until the limit and return the last checkpoint.

    Parameters
    ----------
    start
        Where to begin; with the state of an optimiser it continues as if it had never stopped.
    source
        Draws the measurements of each step.
    manifest
        Recorded with the weights; the losses are added.
    keep
        Called with a checkpoint at least every `keep_seconds`, and once more when `watch` raises Cancelled.
    watch
        Called with stage "train" after each step, and inside the solves; may raise Cancelled, which is passed on.

    Raises
    ------
    Cancelled
        The watch asked for it.
    BadInput
        Neither a number of steps nor a time is given.
    NumericalTrouble
        The training diverged; the last checkpoint is kept.
    """
    if settings.steps <= start.step and settings.seconds <= 0:
        raise BadInput(
            f"nothing to train: {settings.steps} steps asked for, {start.step} already taken, and no time given",
            "Give a larger number of steps or a time.",
        )
    model = start.model(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    if start.optimiser:
        _restore(optimiser, start.optimiser)
        generator.set_state(start.random)
    step = start.step if start.optimiser else 0
    losses: list[float] = list(start.manifest.get("losses", [])) if start.optimiser else []
    began = kept = time.monotonic()
    current = _capture(start, model, optimiser, generator, step, manifest | {"losses": losses})
    try:
        while (not settings.steps or step < settings.steps) and (
            settings.seconds <= 0 or time.monotonic() - began < settings.seconds
        ):
            report = training_step(model, optimiser, source(generator), settings, generator, watch)
            step += 1
            losses.append(report.terms[0][1])
            current = _capture(start, model, optimiser, generator, step, manifest | {"losses": list(losses)})
            solver = (("forward steps", report.forward_steps), ("backward steps", report.backward_steps))
            watch(Progress("train", step, settings.steps, terms=report.terms + solver))
            if time.monotonic() - kept > keep_seconds:
                keep(current)
                kept = time.monotonic()
    except (Cancelled, NumericalTrouble):
        # the state after the last whole step, whatever was interrupted
        keep(current)
        raise
    keep(current)
    return current


def _capture(
    start: Checkpoint,
    model: EquilibriumModel,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    step: int,
    manifest: dict[str, Any],
) -> Checkpoint:
    state = {
        f"{index}/{name}": value.detach().clone().cpu()
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
    }
    weights = {name: value.detach().clone().cpu() for name, value in model.state_dict().items()}
    return replace(
        start,
        weights=weights,
        optimiser=state,
        random=generator.get_state().clone(),
        step=step,
        manifest=manifest,
    )


def _restore(optimiser: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    whole = optimiser.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, name = key.split("/")
        entries.setdefault(int(index), {})[name] = value
    whole["state"] = entries
    optimiser.load_state_dict(whole)
