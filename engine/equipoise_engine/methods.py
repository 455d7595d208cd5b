"""The reconstruction methods by name: what each is called, needs, and does to a batch of slices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from equipoise_engine.acquisition import Acquisition, CtAcquisition, MriAcquisition
from equipoise_engine.classical import conjugate_gradients, data_residual, total_variation
from equipoise_engine.ct import ParallelBeamPhysics
from equipoise_engine.equilibrium import ForwardSettings
from equipoise_engine.errors import BadInput
from equipoise_engine.measured import Measured, Undersampling, kspace_of, measure
from equipoise_engine.model import EquilibriumModel
from equipoise_engine.mri import root_sum_of_squares
from equipoise_engine.operators import Physics
from equipoise_engine.progress import Progress, Watch, unwatched
from equipoise_engine.protocol import ReconstructSettings
from equipoise_engine.solve import Stop


@dataclass(frozen=True)
class Method:
    """A method and its defaults.

    Parameters
    ----------
    label
        Short name for people.
    iterations, tolerance, strength
        Taken where the settings say 0; iterations 0 marks a direct method.
    """

    label: str
    iterations: int = 0
    tolerance: float = 0.0
    strength: float = 0.0


METHODS = {
    "fbp": Method("FBP"),
    "cgls": Method("CGLS", iterations=12, tolerance=1e-4),
    "tv": Method("TV", iterations=150, tolerance=2e-4, strength=0.01),
    "zerofilled": Method("Zero-filled"),
    "sense": Method("CG-SENSE", iterations=30, tolerance=1e-3, strength=0.1),
    "deq": Method("Equilibrium", iterations=100, tolerance=1e-4, strength=1.0),
}
CT_METHODS = ("fbp", "cgls", "tv", "deq")
MRI_METHODS = ("zerofilled", "sense", "deq")


@dataclass(frozen=True)
class BatchResult:
    """What a method gave for a batch of slices.

    Parameters
    ----------
    image
        What people look at `(slice, y, x)`, float32: the framed image, its magnitude for MRI.
    whole
        The image that explains the measurements `(slice, y, x)`, real or complex.
    outcome
        converged, max_steps, diverged or direct.
    iterations
        Iterations taken.
    data_residual
        ||A x - y|| / ||y|| `(slice,)`, float64.
    """

    image: Tensor
    whole: Tensor
    outcome: str
    iterations: int
    data_residual: Tensor


def methods_for(scan: Acquisition) -> tuple[str, ...]:
    """Return the names of the methods that suit a scan, the analytic one first."""
    return CT_METHODS if isinstance(scan, CtAcquisition) else MRI_METHODS


def with_defaults(settings: ReconstructSettings, scan: Acquisition) -> tuple[Method, ReconstructSettings]:
    """Return the method and the settings with every 0 replaced by the method's default.

    Raises
    ------
    BadInput
        The method is unknown or does not suit the scan, or a value is out of range.
    """
    suiting = methods_for(scan)
    if settings.method not in suiting:
        kind = "CT" if isinstance(scan, CtAcquisition) else "MRI"
        raise BadInput(
            f"method {settings.method!r} is not one for a {kind} scan", f"Choose one of {', '.join(suiting)}."
        )
    method = METHODS[settings.method]
    for name, value in (
        ("iterations", settings.iterations),
        ("tolerance", settings.tolerance),
        ("strength", settings.strength),
    ):
        if not 0 <= value < math.inf:
            raise BadInput(f"{name} {value} is not a number from 0 on")
    return method, ReconstructSettings(
        method=settings.method,
        iterations=settings.iterations or method.iterations,
        tolerance=settings.tolerance or method.tolerance,
        strength=settings.strength or method.strength,
        window=settings.window,
        views_every=settings.views_every,
        accelerate=settings.accelerate,
        model=settings.model,
        slices=settings.slices,
    )


def is_direct(settings: ReconstructSettings) -> bool:
    """Whether the method has no iterates."""
    return METHODS[settings.method].iterations == 0


def displayed(image: Tensor, physics: Physics) -> Tensor:
    """Return what people look at `(slice, y, x)`, float32: the framed image, or the magnitude of a complex one."""
    framed = physics.framed(image)
    return (framed.abs() if framed.is_complex() else framed).float().cpu().contiguous()


def run(
    scan: Acquisition,
    slices: slice,
    settings: ReconstructSettings,
    model: EquilibriumModel | None,
    device: torch.device,
    watch: Watch = unwatched,
) -> BatchResult:
    """Reconstruct the slices of a scan with settings that `with_defaults` has completed.

    Parameters
    ----------
    model
        For method "deq".
    watch
        Called at every iterate; may raise Cancelled.
    """
    undersampling = Undersampling(settings.views_every, settings.accelerate)
    if settings.method == "zerofilled":
        # needs no coil maps, so it is quick; the coil images reproduce the measured samples exactly
        assert isinstance(scan, MriAcquisition)
        kspace, _ = kspace_of(scan, slices, undersampling)
        image = root_sum_of_squares(kspace.to(device))
        return BatchResult(image.float().cpu(), image, "direct", 1, torch.zeros(kspace.shape[0], dtype=torch.float64))
    return run_measured(measure(scan, slices, device, undersampling), settings, model, watch)


@torch.no_grad()
def run_measured(
    measured: Measured, settings: ReconstructSettings, model: EquilibriumModel | None, watch: Watch = unwatched
) -> BatchResult:
    """Reconstruct prepared measurements; see `run`. The watch gets iterates as people look at them."""
    y, physics = measured.y, measured.physics

    def framed(progress: Progress) -> None:
        shown = None if progress.iterate is None else displayed(progress.iterate, physics)
        watch(replace(progress, iterate=shown))

    match settings.method:
        case "fbp":
            assert isinstance(physics, ParallelBeamPhysics)
            image, outcome, steps = physics.fbp(y, settings.window), "direct", 1
        case "cgls" | "sense":
            solved = conjugate_gradients(
                physics,
                y,
                damping=settings.strength if settings.method == "sense" else 0.0,
                tolerance=settings.tolerance,
                max_steps=settings.iterations,
                watch=framed,
            )
            image, outcome, steps = solved.image, solved.outcome.value, solved.steps
        case "tv":
            solved = total_variation(
                physics,
                y,
                strength=settings.strength,
                tolerance=settings.tolerance,
                max_steps=settings.iterations,
                nonnegative=not physics.complex_image,
                watch=framed,
            )
            image, outcome, steps = solved.image, solved.outcome.value, solved.steps
        case "deq":
            assert model is not None
            forward = ForwardSettings(stop=Stop(settings.tolerance, settings.iterations))
            image, solution = model(
                y,
                physics,
                strength=settings.strength,
                solver=forward,
                watch=framed,
                measure=lambda x: data_residual(physics, x, y),
            )
            outcome, steps = solution.outcome.value, int(solution.steps.max())
        case _:
            raise BadInput(f"unknown method {settings.method!r}")
    return BatchResult(displayed(image, physics), image, outcome, steps, data_residual(physics, image, y))
