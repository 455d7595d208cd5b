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
from equipoise_engine.losses import NoiseLevel, Reconstruction
from equipoise_engine.measured import Measured
from equipoise_engine.model import EquilibriumModel
from equipoise_engine.networks import as_channels, expansion
from equipoise_engine.objective import Objective, evaluate
from equipoise_engine.operators import Physics, norms
from equipoise_engine.progress import Cancelled, Progress, Watch, unwatched
from equipoise_engine.solve import Iterate, Outcome, Solution, Stop
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
        `largest_gain`; it keeps the fixed point unique, in particular where the measurements say nothing. 0 measures
        no gain.
    objective
        What is minimised beside that.
    second_start
        Where the second solve of the equivariance loss starts: from the "measurements", or from the image it should
        return to ("turned"), which is used only while the denoiser is measured to contract and the solve is held to
        `closeness`.
    closeness
        A solve from "turned" goes on until its distance to the fixed point, estimated from its residual and its rate,
        is at most this share of its distance to the image it should return to.
    forward, backward
        How the solves of the training are done.
    """

    steps: int = 0
    seconds: float = 0.0
    learning_rate: float = 2e-4
    batch: int = 2
    seed: int = 0
    contraction_weight: float = 0.1
    largest_gain: float = 0.95
    objective: Objective = field(default_factory=Objective)
    second_start: str = "measurements"
    closeness: float = 0.1
    forward: ForwardSettings = field(default_factory=lambda: ForwardSettings(stop=Stop(tolerance=1e-3, max_steps=40)))
    backward: BackwardSettings = field(default_factory=BackwardSettings)

    def __post_init__(self) -> None:
        if self.second_start not in ("measurements", "turned"):
            raise BadInput(f"unknown start {self.second_start!r} of the second solve: measurements or turned")


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did.

    Parameters
    ----------
    terms
        The loss and its parts by name.
    forward_steps, backward_steps
        Mean number of evaluations of T, and of vector-Jacobian products, in a solve.
    unconverged
        Samples whose forward or backward solve met its limit.
    level
        The noise level that "unsure" has learned so far.
    """

    terms: tuple[tuple[str, float], ...]
    forward_steps: float
    backward_steps: float
    unconverged: int
    level: NoiseLevel | None = None


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
    *,
    level: NoiseLevel | None = None,
) -> StepReport:
    """Take one optimiser step on the objective and say what it did.

    Parameters
    ----------
    level
        Of the step before, for the data term "unsure".

    Raises
    ------
    BadInput
        The objective needs something that is not known of these measurements.
    NumericalTrouble
        The gradient is not finite; the weights are unchanged.
    """
    solves: list[Solution] = []
    report = BackwardReport()

    def solve_from(
        y: Tensor, physics: Physics, copies: int, start: Tensor | Iterate | None, forward: ForwardSettings
    ) -> Tensor:
        value, solution = model(
            y,
            physics,
            solver=replace(forward, stop=replace(forward.stop, copies=copies)),
            backward=settings.backward,
            report=report,
            start=start,
            watch=watch,
        )
        solves.append(solution)
        result: Tensor = value
        return result

    def reconstruct(y: Tensor, physics: Physics, copies: int = 1) -> Tensor:
        return solve_from(y, physics, copies, None, settings.forward)

    def returning(turned: Tensor) -> Reconstruction:
        def reconstruct_from(y: Tensor, physics: Physics, copies: int = 1) -> Tensor:
            with torch.no_grad():
                contracts = float(_gain(model, turned, generator).max()) < 1
            if not contracts:
                return reconstruct(y, physics, copies)
            settled = _settle(model, y.detach(), physics, turned, settings, watch)
            return solve_from(y, physics, copies, settled.last, settings.forward)

        return reconstruct_from

    found = evaluate(
        settings.objective,
        drawn,
        reconstruct,
        generator,
        again=returning if settings.second_start == "turned" else None,
        level=level,
    )
    contraction = torch.zeros((), device=drawn.y.device)
    if settings.contraction_weight:
        gain = _gain(model, found.x_hat[:1].detach(), generator)
        contraction = (gain - settings.largest_gain).clamp(min=0).square().mean()
    loss = (
        found.data
        + settings.objective.equivariance_weight * found.equivariance
        + settings.contraction_weight * contraction
    )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    size = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not bool(torch.isfinite(size)):
        raise NumericalTrouble(
            "the gradient of the training loss is not finite", "Lower the learning rate or start from other weights."
        )
    optimiser.step()
    forward = torch.cat([s.steps for s in solves]).double().mean()
    unfinished = sum(outcome is not Outcome.CONVERGED for s in solves for outcome in s.outcomes)
    return StepReport(
        (
            ("total", float(loss.detach())),
            ("measurement consistency", float(found.data.detach())),
            ("equivariance", float(found.equivariance.detach())),
            ("contraction", float(contraction.detach())),
        ),
        float(forward),
        sum(report.steps) / max(1, len(report.steps)),
        unfinished + report.unconverged,
        found.level,
    )


def _gain(model: EquilibriumModel, image: Tensor, generator: torch.Generator) -> Tensor:
    one = as_channels(image)
    direction = torch.randn(one.shape, generator=generator).to(one)
    gain, _ = expansion(model.denoiser, one, direction, steps=4)
    return gain


@torch.no_grad()
def _settle(
    model: EquilibriumModel, y: Tensor, physics: Physics, turned: Tensor, settings: TrainSettings, watch: Watch
) -> Solution:
    """Return a solve from `turned` that has come so near to its fixed point that its distance to `turned` is right.

    Stopped early, it would be too near to its start and the equivariance loss too small.
    """
    forward = replace(settings.forward, stop=replace(settings.forward.stop, min_steps=3))
    solution: Solution
    _, solution = model(y, physics, solver=forward, start=turned, watch=watch)
    while True:
        # the mean rate: a single step of an accelerated solve may go up
        first = solution.residuals[0].clamp(min=torch.finfo(torch.float64).tiny)
        steps = solution.residuals.shape[0]
        rate = ((solution.residual / first) ** (1 / max(1, steps - 1))).clamp(max=0.99)
        left = solution.residual * norms(solution.value) / (1 - rate)
        near = left <= settings.closeness * norms(solution.value - turned)
        stop = forward.stop
        if bool(near.all()) or solution.last.step >= stop.max_steps or stop.tolerance < 1e-6:
            return solution
        forward = replace(forward, stop=replace(stop, tolerance=stop.tolerance / 4))
        again = replace(solution.last, active=torch.ones_like(solution.last.active))
        _, solution = model(y, physics, solver=forward, start=again, watch=watch)


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
    level = NoiseLevel(*start.manifest["noise level"]) if start.optimiser and "noise level" in start.manifest else None
    losses: list[float] = list(start.manifest.get("losses", [])) if start.optimiser else []
    began = kept = time.monotonic()
    current = _capture(start, model, optimiser, generator, step, _told(manifest, losses, level))
    try:
        while (not settings.steps or step < settings.steps) and (
            settings.seconds <= 0 or time.monotonic() - began < settings.seconds
        ):
            report = training_step(model, optimiser, source(generator), settings, generator, watch, level=level)
            step += 1
            level = report.level
            losses.append(report.terms[0][1])
            current = _capture(start, model, optimiser, generator, step, _told(manifest, losses, level))
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


def _told(manifest: dict[str, Any], losses: list[float], level: NoiseLevel | None) -> dict[str, Any]:
    told = manifest | {"losses": list(losses)}
    return told if level is None else told | {"noise level": [level.variance, level.velocity]}


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
