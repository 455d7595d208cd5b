"""The reconstruction methods by name: what each is called, needs, and does to a batch of slices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast, get_args

import msgspec
import torch
from torch import Tensor

from equipoise_engine.acquisition import Acquisition, CtAcquisition, MriAcquisition
from equipoise_engine.algebraic import ordered_subsets, simultaneous_iterations
from equipoise_engine.classical import (
    Reconstructed,
    conjugate_gradients,
    counts_weights,
    data_residual,
    total_variation,
    wavelet,
)
from equipoise_engine.cone import ConeBeamPhysics
from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.equilibrium import ForwardSettings
from equipoise_engine.errors import BadInput
from equipoise_engine.fbp import FBP_WINDOWS, is_offset
from equipoise_engine.geometry import Cartesian, ConeBeam, ParallelBeam
from equipoise_engine.grappa import grappa
from equipoise_engine.measured import CoilMaps, Measured, Modelling, Undersampling, coil_images, kspace_of, measure
from equipoise_engine.model import EquilibriumModel
from equipoise_engine.mri import centred_fft
from equipoise_engine.noncartesian import NonCartesianPhysics
from equipoise_engine.operators import Physics, norms
from equipoise_engine.partial_fourier import homodyne, is_partial_fourier, projection_onto_convex_sets
from equipoise_engine.preprocess.kspace_steps import prepared_coils
from equipoise_engine.primal_dual import primal_dual_total_variation
from equipoise_engine.progress import Progress, Watch, unwatched
from equipoise_engine.projection.projector import Footprint
from equipoise_engine.protocol import ReconstructSettings
from equipoise_engine.solve import Stop


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method and its defaults.

    Parameters
    ----------
    label
        Short name for people.
    iterations, tolerance, strength
        Taken where the settings say 0; iterations 0 marks a direct method.
    mri_strength
        Default strength of MRI where it is another one.
    weightings
        How residuals of CT may weigh, the default first; none where the method has no choice.
    """

    label: str
    iterations: int = 0
    tolerance: float = 0.0
    strength: float = 0.0
    mri_strength: float = 0.0
    weightings: tuple[str, ...] = ()


METHODS = {
    "fbp": Method(label="FBP"),
    "fdk": Method(label="FDK"),
    "cgls": Method(label="CGLS", iterations=12, tolerance=1e-4, weightings=("uniform", "counts")),
    "sirt": Method(label="SIRT", iterations=120, tolerance=1e-4, weightings=("uniform", "counts")),
    "tv": Method(
        label="TV",
        iterations=150,
        tolerance=2e-4,
        strength=0.01,
        mri_strength=0.005,
        weightings=("ramp", "uniform", "counts"),
    ),
    "wavelet": Method(label="Wavelets", iterations=60, tolerance=5e-4, strength=0.005),
    "zerofilled": Method(label="Zero-filled"),
    "gridding": Method(label="Gridding"),
    "homodyne": Method(label="Homodyne"),
    "pocs": Method(label="POCS"),
    "grappa": Method(label="GRAPPA"),
    "sense": Method(label="CG-SENSE", iterations=30, tolerance=1e-3, strength=0.1),
    "deq": Method(label="Equilibrium", iterations=100, tolerance=1e-4, strength=1.0),
}
CT_METHODS = ("fbp", "cgls", "sirt", "tv", "wavelet", "deq")
CONE_METHODS = ("fdk", "cgls", "sirt", "tv")
MRI_METHODS = ("zerofilled", "homodyne", "pocs", "grappa", "sense", "tv", "wavelet", "deq")
NON_CARTESIAN_METHODS = ("gridding", "sense", "tv", "wavelet", "deq")
COIL_BY_COIL = frozenset({"zerofilled", "homodyne", "pocs", "grappa"})
"""Methods whose coil images are combined by the root of their sum of squares."""
LEAST_PASSES = 4
"""Fewest passes of SIRT through its subsets by default."""


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
        ||A x - y|| / ||y|| `(slice,)`, float64; of coil-by-coil methods, A is the transform of each coil image to
        where k-space was sampled.
    """

    image: Tensor
    whole: Tensor
    outcome: str
    iterations: int
    data_residual: Tensor
    advice: str = ""


def methods_for(scan: Acquisition) -> tuple[str, ...]:
    """Return the names of the methods that suit a scan, the analytic one first."""
    match scan:
        case CtAcquisition():
            return CONE_METHODS if isinstance(scan.geometry, ConeBeam) else CT_METHODS
        case MriAcquisition():
            if not isinstance(scan.geometry, Cartesian):
                return NON_CARTESIAN_METHODS
            unsuited = set() if is_partial_fourier(scan.geometry.sampled) else {"homodyne", "pocs"}
            # what a coil did not measure is filled in from the others
            if prepared_coils(scan) == 1:
                unsuited.add("grappa")
            return tuple(name for name in MRI_METHODS if name not in unsuited)


def with_defaults(settings: ReconstructSettings, scan: Acquisition) -> tuple[Method, ReconstructSettings]:
    """Return the method and the settings with every 0 replaced by the method's default.

    Raises
    ------
    BadInput
        The method is unknown or does not suit the scan, or a value is out of range.
    """
    suiting = methods_for(scan)
    if settings.method not in suiting:
        raise BadInput(_unsuited(settings.method, scan), f"Choose one of {', '.join(suiting)}.")
    method = METHODS[settings.method]
    for name, value in (
        ("iterations", settings.iterations),
        ("tolerance", settings.tolerance),
        ("strength", settings.strength),
    ):
        if not 0 <= value < math.inf:
            raise BadInput(f"{name} {value} is not a number from 0 on")
    _check_choices(settings, scan, method)
    # every subset is a step of its own, so as many fewer passes come as far
    iterations = max(-(-method.iterations // settings.subsets), min(method.iterations, LEAST_PASSES))
    strength = method.mri_strength if isinstance(scan, MriAcquisition) else 0.0
    return method, msgspec.structs.replace(
        settings,
        iterations=settings.iterations or iterations,
        tolerance=settings.tolerance or method.tolerance,
        strength=settings.strength or strength or method.strength,
        weighting=settings.weighting or weightings(settings.method, scan)[0],
    )


def weightings(method: str, scan: Acquisition) -> tuple[str, ...]:
    """Return how residuals may weigh in a method for a scan, the default first; "" where there is no choice."""
    offered = METHODS[method].weightings if isinstance(scan, CtAcquisition) else ()
    return offered or ("",)


def _kind(scan: Acquisition) -> str:
    match scan:
        case CtAcquisition():
            return "a cone-beam CT scan" if isinstance(scan.geometry, ConeBeam) else "a CT scan"
        case MriAcquisition():
            return "an MRI scan" if isinstance(scan.geometry, Cartesian) else "a non-Cartesian MRI scan"


def _unsuited(method: str, scan: Acquisition) -> str:
    """Say why a method does not suit a scan."""
    if isinstance(scan, MriAcquisition) and isinstance(scan.geometry, Cartesian) and method in MRI_METHODS:
        # of these, `methods_for` leaves out only what this scan lacks
        if method == "grappa":
            return f"{method} needs several coils; this scan has one"
        return f"{method} needs partial Fourier sampling; no side of this scan's k-space was left out"
    return f"method {method!r} is not one for {_kind(scan)}"


def _check_choices(settings: ReconstructSettings, scan: Acquisition, method: Method) -> None:
    """Raise BadInput for a choice that the method or the scan does not have."""
    offered = weightings(settings.method, scan)
    if settings.weighting and settings.weighting not in offered:
        hint = f"Choose one of {', '.join(offered)}." if offered[0] else "Leave it out."
        raise BadInput(f"{method.label} of {_kind(scan)} has no weighting {settings.weighting!r}", hint)
    if settings.method != "sirt" and settings.subsets != 1:
        raise BadInput(f"{method.label} has no subsets of views; {settings.subsets} were asked for", "Only SIRT has.")
    most = max(1, -(-int(scan.shape[0]) // max(1, settings.views_every)))
    if settings.method == "sirt" and not 1 <= settings.subsets <= most:
        raise BadInput(
            f"{settings.subsets} subsets: the number must lie in 1 to {most} for {method.label}",
            "Each subset has one view at least.",
        )
    if settings.window not in FBP_WINDOWS:
        raise BadInput(f"unknown filter window {settings.window!r}", f"Choose one of {', '.join(FBP_WINDOWS)}.")
    if settings.window != FBP_WINDOWS[0] and settings.method not in ("fbp", "fdk"):
        raise BadInput(f"{method.label} has no filter window", "Leave it out.")
    if settings.coil_maps != "espirit" and settings.method in COIL_BY_COIL:
        raise BadInput(f"{method.label} takes no coil maps", "Leave them out.")
    slices = isinstance(scan, CtAcquisition) and not isinstance(scan.geometry, ConeBeam)
    for name, chosen, known, suits in (
        ("footprint", settings.footprint, get_args(Footprint), slices),
        ("coil maps", settings.coil_maps, get_args(CoilMaps), isinstance(scan, MriAcquisition)),
    ):
        if chosen not in known:
            raise BadInput(f"there are no {name} {chosen!r}", f"Choose one of {', '.join(known)}.")
        if not suits and chosen != known[0]:
            raise BadInput(f"{_kind(scan)} has no {name} {chosen!r}", "Leave it out.")
    if settings.coil_maps == "espirit-2" and settings.method in ("gridding", "deq"):
        raise BadInput(f"{method.label} takes one set of coil maps, not two", "Choose espirit or walsh.")
    coils = int(scan.kspace.shape[1]) if isinstance(scan, MriAcquisition) else 0
    if any(settings.shift_px) and not (coils and all(math.isfinite(shift) for shift in settings.shift_px)):
        raise BadInput(
            f"{_kind(scan)} cannot be moved by {settings.shift_px} pixels", "Only MRI scans, by finite shifts."
        )


def is_direct(settings: ReconstructSettings) -> bool:
    """Whether the method has no iterates."""
    return METHODS[settings.method].iterations == 0


def displayed(image: Tensor, physics: Physics) -> Tensor:
    """Return what people look at `(slice, y, x)`, float32: the framed image, or the magnitude of a complex one.

    Volumes `(batch, z, y, x)` come as their slices.
    """
    framed = physics.framed(image).flatten(0, -3)
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
    modelling = Modelling(
        cast(Footprint, settings.footprint),
        cast(CoilMaps, settings.coil_maps),
        settings.shift_px,
    )
    if settings.method in COIL_BY_COIL:
        # need no coil maps, so they are quick
        assert isinstance(scan, MriAcquisition)
        kspace, sampling = kspace_of(scan, slices, undersampling, modelling)
        assert isinstance(sampling, Cartesian)
        images = torch.stack([_coils_alone(settings.method, one, sampling, device) for one in kspace])
        image = torch.linalg.vector_norm(images, dim=1)
        residual = _coil_residual(images, kspace.to(device), sampling)
        return BatchResult(image.float().cpu(), image, "direct", 1, residual.cpu())
    done = run_measured(measure(scan, slices, device, undersampling, modelling), settings, model, watch)
    # a cone beam gives all slices of its volume, whichever were asked for
    return replace(done, image=done.image[slices]) if isinstance(scan.geometry, ConeBeam) else done


def _coils_alone(method: str, kspace: Tensor, sampling: Cartesian, device: torch.device) -> Tensor:
    """Return images `(coil, y, x)` of k-space `(coil, ky, kx)`, what was not sampled filled in as the method does."""
    if method == "zerofilled" or not bool(kspace.any()):
        return coil_images(kspace[None].to(device), sampling)[0]
    values = kspace.numpy()
    if method == "homodyne":
        return torch.from_numpy(homodyne(values, sampling.sampled)).to(device)
    fill = grappa if method == "grappa" else projection_onto_convex_sets
    return coil_images(torch.from_numpy(fill(values, sampling.sampled))[None].to(device), sampling)[0]


def _coil_residual(images: Tensor, kspace: Tensor, sampling: Cartesian) -> Tensor:
    """Return by how much images `(slice, coil, y, x)` miss the measured samples, relative to those `(slice,)`."""
    sampled = torch.from_numpy(sampling.sampled).to(images.device)
    missed = (centred_fft(images) - kspace).mul_(sampled)
    return norms(missed) / norms(kspace).clamp(min=torch.finfo(torch.float64).tiny)


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
            assert isinstance(physics, TomographyPhysics)
            image, outcome, steps = physics.fbp(y, settings.window), "direct", 1
        case "fdk":
            assert isinstance(physics, ConeBeamPhysics)
            image, outcome, steps = physics.fdk(y, settings.window), "direct", 1
        case "gridding":
            image, outcome, steps = physics.analytic(y), "direct", 1
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
            solved = _iterated(physics, y, settings, framed)
            image, outcome, steps = solved.image, solved.outcome.value, solved.steps
    residual = data_residual(physics, image, y)
    return BatchResult(displayed(image, physics), image, outcome, steps, residual, measured.advice)


def _iterated(physics: Physics, y: Tensor, settings: ReconstructSettings, watch: Watch) -> Reconstructed:
    """Return what a classical iterative method gives. Raises BadInput where there is none of that name."""
    weights = counts_weights(y) if settings.weighting == "counts" else None
    if isinstance(physics, NonCartesianPhysics):
        # without it the dense middle of k-space is fitted long before its edge (K. P. Pruessmann et al. 2001)
        weights = physics.density.to(y.device, y.real.dtype).expand(y.shape)
    nonnegative = settings.nonnegative and not physics.complex_image
    tolerance, max_steps = settings.tolerance, settings.iterations
    match settings.method:
        case "cgls" | "sense":
            return conjugate_gradients(
                physics,
                y,
                damping=settings.strength if settings.method == "sense" else 0.0,
                tolerance=tolerance,
                max_steps=max_steps,
                weights=weights,
                watch=watch,
            )
        case "sirt":
            return simultaneous_iterations(
                physics,
                y,
                tolerance=tolerance,
                max_steps=max_steps,
                nonnegative=nonnegative,
                subsets=_subsets(physics, settings.subsets),
                weights=weights,
                watch=watch,
            )
        case "tv" if settings.weighting in ("uniform", "counts"):
            return primal_dual_total_variation(
                physics,
                y,
                strength=settings.strength,
                tolerance=tolerance,
                max_steps=max_steps,
                nonnegative=nonnegative,
                weights=weights,
                watch=watch,
            )
        case "tv":
            return total_variation(
                physics,
                y,
                strength=settings.strength,
                tolerance=tolerance,
                max_steps=max_steps,
                nonnegative=nonnegative,
                watch=watch,
            )
        case "wavelet":
            return wavelet(
                physics, y, strength=settings.strength, tolerance=tolerance, max_steps=max_steps, watch=watch
            )
        case _:
            raise BadInput(f"unknown method {settings.method!r}")


def _subsets(physics: Physics, count: int) -> tuple[Tensor, ...]:
    assert isinstance(physics, TomographyPhysics | ConeBeamPhysics)
    # a half-acquisition sees one side of the object from each direction
    half = isinstance(physics.geometry, ParallelBeam) and not is_offset(physics.geometry, physics.range[-1])
    turn = math.pi if half else 2 * math.pi
    return ordered_subsets(physics.geometry.angle_rad, count, turn_rad=turn)
