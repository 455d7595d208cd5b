"""What a training step minimises: a data term that copes with the noise, and a term for what was not measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.groups import check_group, draw
from equipoise_engine.losses import (
    NoiseLevel,
    Reconstruction,
    attenuation_variance,
    equivariance,
    equivariant_splitting,
    measurement_consistency,
    raised,
    recorrupt,
    splitting,
    stein_terms,
    supervised,
    sure,
    unsure,
)
from equipoise_engine.measured import Measured

DATA_TERMS = ("r2r", "consistency", "sure", "unsure", "split", "equivariant-splitting", "supervised")
NOISE_MODELS = ("white", "poisson")


@dataclass(frozen=True)
class Objective:
    """Which losses are added up.

    Parameters
    ----------
    data_term
        "r2r" recorrupts the measurements (measurement consistency where the noise is not known), "consistency" fits
        them, "sure" and "unsure" estimate the risk with a known and a learned noise level, "split" reconstructs from a
        part and compares with the rest, "equivariant-splitting" does so through a transform, "supervised" takes the
        truth.
    equivariance_weight
        Of the equivariance loss; 0 leaves it out.
    group
        Of its transforms and those of equivariant splitting, see `groups.draw`.
    detach_target
        Whether the equivariance loss sends no gradient through its target.
    noise_model
        "white", or "poisson" for attenuation from photon counts.
    photons, readout
        Counts of a ray through air, and the standard deviation of the electronic noise in counts ("poisson"; with
        readout noise the mixed Poisson-Gaussian model).
    kept
        Share of the measurements that splitting reconstructs from.
    """

    data_term: str = "r2r"
    equivariance_weight: float = 1.0
    group: str = "rotation"
    detach_target: bool = False
    noise_model: str = "white"
    photons: float = 0.0
    readout: float = 0.0
    kept: float = 0.6

    def __post_init__(self) -> None:
        if self.data_term not in DATA_TERMS:
            raise BadInput(f"unknown data term {self.data_term!r}", f"Choose one of {', '.join(DATA_TERMS)}.")
        if self.noise_model not in NOISE_MODELS:
            raise BadInput(f"unknown noise model {self.noise_model!r}", f"Choose one of {', '.join(NOISE_MODELS)}.")
        if self.noise_model == "poisson" and not 0 < self.photons < math.inf:
            raise BadInput(
                f"the photon counts of the poisson noise model are {self.photons:g}, not a positive number",
                "Give the mean counts of a ray through air.",
            )
        if not 0 <= self.readout < math.inf:
            raise BadInput(f"a readout noise of {self.readout:g} counts is not a standard deviation", "Give 0 or more.")
        if not 0 < self.kept < 1:
            raise BadInput(f"a share of {self.kept:g} to reconstruct from does not lie between 0 and 1")


@dataclass(frozen=True)
class Terms:
    """The terms of the loss, each `()`, and what they were computed from.

    Parameters
    ----------
    x_hat
        The reconstruction that the data term judges `(batch, y, x)`; that of equivariant splitting is turned back.
    level
        The noise level after the step, for "unsure".
    """

    x_hat: Tensor
    data: Tensor
    equivariance: Tensor
    level: NoiseLevel | None


def evaluate(
    objective: Objective,
    drawn: Measured,
    reconstruct: Reconstruction,
    generator: torch.Generator,
    *,
    again: Callable[[Tensor], Reconstruction] | None = None,
    level: NoiseLevel | None = None,
) -> Terms:
    """Return the terms of the loss of a batch, differentiable.

    Parameters
    ----------
    again
        Gives the reconstruction that the equivariance loss uses, from the image `(batch, y, x)` it should return to;
        None takes `reconstruct`.
    level
        The noise level so far, for "unsure"; None begins from the given one or a guess.

    Raises
    ------
    BadInput
        The data term needs something that is not known: the noise level, or the truth; or the group does not suit.
    """
    y, physics = drawn.y, drawn.physics
    check_group(objective.group, physics)
    transform = draw(
        objective.group,
        y.shape[0],
        generator,
        shape=(physics.domain[0], physics.domain[1]),
        avoid_step_rad=drawn.view_step_rad,
        device=y.device,
    )

    def deviation(measured: Tensor) -> Tensor | float:
        if objective.noise_model == "poisson":
            return attenuation_variance(measured, objective.photons, objective.readout).sqrt()
        return drawn.noise

    known = objective.noise_model == "poisson" or drawn.noise > 0

    def noise(measured: Tensor) -> Tensor | None:
        if not known:
            return None
        return deviation(measured) * physics.noise_like(measured, generator)

    match objective.data_term:
        case "supervised":
            if drawn.truth is None:
                raise BadInput("the truth of these measurements is not known", "Choose another data term.")
            x_hat = reconstruct(y, physics)
            data = supervised(x_hat, drawn.truth, physics)
        case "consistency" | "r2r":
            disturbance = noise(y) if objective.data_term == "r2r" else None
            given, target = (y, y) if disturbance is None else recorrupt(y, disturbance)
            x_hat = reconstruct(given, physics)
            data = measurement_consistency(x_hat, target, physics)
        case "sure":
            if not known:
                raise BadInput(
                    "the noise of these measurements is not known, and the data term sure needs it",
                    "Give the noise, or choose unsure.",
                )
            probe = physics.noise_like(y, generator)
            variance = torch.as_tensor(deviation(y)).to(y.device) ** 2
            terms = stein_terms(y, physics, reconstruct, variance=variance, probe=probe)
            x_hat, data = terms.x_hat, sure(terms)
        case "unsure":
            relative = objective.noise_model == "poisson"
            variance = torch.as_tensor(deviation(y) if relative else 1.0).to(y.device) ** 2
            terms = stein_terms(y, physics, reconstruct, variance=variance, probe=physics.noise_like(y, generator))
            if level is None:
                # a hundredth of the signal where nothing better is known
                guess = drawn.noise**2 or 1e-4 * float(y.abs().square().mean())
                level = NoiseLevel(1.0 if relative else guess)
            x_hat, data = terms.x_hat, unsure(terms, level)
            level = raised(level, terms)
        case "split":
            kept = physics.random_split(generator, objective.kept)
            data, x_hat = splitting(y, physics, reconstruct, kept=kept)
        case _:
            kept = physics.random_split(generator, objective.kept)
            # one transform for the batch: a parallel beam then needs no image turned
            one = transform.select(torch.zeros(1, dtype=torch.int64))
            data, x_hat = equivariant_splitting(y, physics, reconstruct, transform=one, kept=kept, noise=noise(y))
    if objective.equivariance_weight == 0:
        return Terms(x_hat, data.mean(), torch.zeros((), device=y.device), level)
    second = reconstruct
    if again is not None:
        with torch.no_grad():
            second = again(transform.cropped(transform.apply(x_hat.detach())))
    equivariant = equivariance(
        x_hat, physics, second, transform=transform, corrupt=noise, detach_target=objective.detach_target
    )
    return Terms(x_hat, data.mean(), equivariant.mean(), level)
