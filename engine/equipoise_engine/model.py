"""The equilibrium reconstruction model f(y): the fixed point of a gradient step on the data and a learned denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise_engine.classical import starting_image
from equipoise_engine.equilibrium import BackwardReport, BackwardSettings, ForwardSettings, equilibrium
from equipoise_engine.networks import ResidualUNet, as_channels, from_channels
from equipoise_engine.operators import Physics
from equipoise_engine.progress import Watch, unwatched
from equipoise_engine.solve import Iterate, Solution, Stop


@dataclass(frozen=True)
class Architecture:
    """What is needed to build the network that some weights belong to."""

    image_channels: int
    widths: tuple[int, int, int] = (16, 32, 64)


class EquilibriumModel(nn.Module):
    """f(y) = x* with x* = T(x*, y), T(x, y) = D(x - g A^H W (A x - y)): proximal gradient with a learned D.

    W (see `Physics.weight`) makes the nonzero spectrum of A^H W A nearly flat, so few iterations suffice. The step g,
    in (0, 2) and learned too, balances data against prior.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.step_logit = nn.Parameter(torch.zeros(()))
        self.denoiser = ResidualUNet(architecture.image_channels, architecture.widths)

    def denoise(self, image: Tensor) -> Tensor:
        """Return D(x) `(batch, y, x)` for a real or complex image, as `architecture.image_channels` says."""
        return from_channels(self.denoiser(as_channels(image)))

    def step(self, x: Tensor, y: Tensor, physics: Physics) -> Tensor:
        """Return T(x, y) `(batch, y, x)`."""
        return self.denoise(x - 2 * torch.sigmoid(self.step_logit) * physics.gradient(x, y))

    def forward(
        self,
        y: Tensor,
        physics: Physics,
        *,
        solver: ForwardSettings | None = None,
        backward: BackwardSettings | None = None,
        report: BackwardReport | None = None,
        start: Iterate | None = None,
        watch: Watch = unwatched,
        measure: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Solution]:
        """Return the reconstruction `(batch, y, x)` of y and how it was found; differentiable in y and the weights.

        The solve starts at a classical image (`classical.starting_image`), a function of y alone, or continues from
        `start`.
        """

        def step(x: Tensor, part: Tensor, samples: Tensor) -> Tensor:
            everything = samples.shape[0] == y.shape[0]
            return self.step(x, part, physics if everything else physics.select(samples))

        with torch.no_grad():
            x0 = start if start is not None else starting_image(physics, y.detach())
        return equilibrium(
            step,
            y,
            x0,
            tuple(self.parameters()),
            forward=solver or ForwardSettings(stop=Stop(tolerance=1e-4, max_steps=100)),
            backward=backward or BackwardSettings(),
            report=report,
            watch=watch,
            measure=measure,
        )
