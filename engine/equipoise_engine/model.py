"""The equilibrium reconstruction model f(y): the fixed point of a map that joins the data and a learned denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise_engine.classical import starting_image
from equipoise_engine.equilibrium import BackwardReport, BackwardSettings, ForwardSettings, equilibrium
from equipoise_engine.errors import BadInput
from equipoise_engine.fixed_point import FIXED_POINTS, FixedPointMap, build_map
from equipoise_engine.networks import as_channels, build_denoiser, from_channels
from equipoise_engine.operators import Physics
from equipoise_engine.progress import Watch, unwatched
from equipoise_engine.solve import Iterate, Solution, Stop


@dataclass(frozen=True)
class Architecture:
    """What is needed to build the model that some weights belong to.

    Parameters
    ----------
    image_channels
        1 for real images, 2 for complex ones.
    widths
        Channels of the levels of the network.
    network
        Kind of denoiser, see `networks.build_denoiser`.
    fixed_point
        Kind of map, see `fixed_point.build_map`.
    """

    image_channels: int
    widths: tuple[int, int, int] = (16, 32, 64)
    network: str = "unet"
    fixed_point: str = "pgd"


class EquilibriumModel(nn.Module):
    """f(y) = x* with x* = T(x*, y), for one of the maps of `fixed_point` and one of the denoisers of `networks`.

    The weight of the map (step g in (0, 2) of "pgd", g of "hqs", lambda of "red") balances data against prior and is
    learned too.

    Raises
    ------
    BadInput
        The architecture names an unknown map or network.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        if architecture.fixed_point not in FIXED_POINTS:
            raise BadInput(
                f"unknown fixed-point map {architecture.fixed_point!r}", f"Choose one of {', '.join(FIXED_POINTS)}."
            )
        self.architecture = architecture
        # the logarithm of lambda or g; for "pgd" the logit of g / 2
        first = {"pgd": 0.0, "red": math.log(0.05), "hqs": math.log(5.0)}[architecture.fixed_point]
        self.step_logit = nn.Parameter(torch.tensor(first))
        self.denoiser = build_denoiser(architecture.network, architecture.image_channels, architecture.widths)

    @property
    def has_strength(self) -> bool:
        """Whether the strength of the prior can be chosen at run time."""
        return self.architecture.fixed_point != "pgd"

    def denoise(self, image: Tensor) -> Tensor:
        """Return D(x) `(batch, y, x)` for a real or complex image, as `architecture.image_channels` says."""
        return from_channels(self.denoiser(as_channels(image)))

    def map(self, physics: Physics, *, strength: float = 1.0) -> FixedPointMap:
        """Return T for a batch of measurements.

        Parameters
        ----------
        strength
            Multiplies the learned weight of the prior against the data.

        Raises
        ------
        BadInput
            The strength is not positive, or is not one for a map that has none.
        """
        if not 0 < strength < math.inf:
            raise BadInput(f"a strength of {strength:g} is not a positive number")
        if strength != 1 and not self.has_strength:
            raise BadInput(
                f"this model has no strength to choose, and {strength:g} was asked for",
                "Its balance of data and prior is part of the weights. Models of the kinds red and hqs have one.",
            )
        return build_map(
            self.architecture.fixed_point,
            physics,
            self.denoise,
            lambda: self._weight(strength),
            symmetric=bool(self.denoiser.symmetric),
        )

    def _weight(self, strength: float) -> Tensor:
        match self.architecture.fixed_point:
            case "pgd":
                return 2 * torch.sigmoid(self.step_logit)
            case "red":
                return strength * torch.exp(self.step_logit)
            case _:
                return torch.exp(self.step_logit) / strength

    def step(self, x: Tensor, y: Tensor, physics: Physics) -> Tensor:
        """Return T(x, y) `(batch, y, x)`."""
        return self.map(physics).step(x, y)

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
        """Return the reconstruction `(batch, y, x)` of y and how it was found; differentiable in y and the weights.

        Parameters
        ----------
        y
            Measurements `(batch, ...)`.
        strength
            See `map`.
        start
            Where the solve starts, or the state of an earlier one; None starts at a classical image
            (`classical.starting_image`), a function of y alone, as training needs it.
        """
        if start is None:
            with torch.no_grad():
                start = starting_image(physics, y.detach())
        return equilibrium(
            self.map(physics, strength=strength),
            y,
            start,
            tuple(self.parameters()),
            forward=solver or ForwardSettings(stop=Stop(tolerance=1e-4, max_steps=100)),
            backward=backward or BackwardSettings(),
            report=report,
            watch=watch,
            measure=measure,
        )
