"""Make the weights that ship with the program, from generated objects alone.

First the denoiser learns to remove white noise from generated images (with the clean image as target). Then the whole
equilibrium model is trained by equivariant imaging on simulated measurements, without any target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.finetune import TrainSettings, finetune
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.measured import Measured
from equipoise_engine.model import Architecture, EquilibriumModel
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.networks import SIZES, as_channels, expansion
from equipoise_engine.phantoms import random_coil_maps, random_images, random_phase, simulate_kspace
from equipoise_engine.progress import Progress, Watch, unwatched
from equipoise_engine.weights import Checkpoint


@dataclass(frozen=True)
class PretrainSettings:
    """How the shipped weights are made.

    Parameters
    ----------
    modality
        "ct" or "mri".
    side
        Side of the generated images in pixels.
    denoise_steps, denoise_batch, denoise_rate
        Optimiser steps of the first stage, images per step, and its first learning rate (falls to zero by a cosine).
    noise
        Smallest and largest standard deviation of its noise, relative to the brightest pixel; drawn log-uniformly.
    largest_gain, contraction_weight, contraction_batch
        The denoiser is penalised where it expands a direction by more than `largest_gain` (see `expansion`), on so
        many images.
    equivariant_steps, equivariant_batch, equivariant_rate
        The same for the second stage, at a constant rate.
    views
        Smallest and largest number of views of the second stage (CT).
    accelerations
        Smallest and largest acceleration of the second stage (MRI).
    network, size, fixed_point
        Kind and size of the denoiser (`networks.build_denoiser`, `networks.SIZES`), and the map it is put in
        (`fixed_point.build_map`).
    """

    modality: str
    side: int = 96
    denoise_steps: int = 1500
    denoise_batch: int = 6
    denoise_rate: float = 2e-3
    noise: tuple[float, float] = (0.004, 0.4)
    largest_gain: float = 0.95
    contraction_weight: float = 1.0
    contraction_batch: int = 2
    equivariant_steps: int = 600
    equivariant_batch: int = 2
    equivariant_rate: float = 2e-4
    views: tuple[int, int] = (16, 64)
    accelerations: tuple[int, int] = (2, 6)
    network: str = "unet"
    size: str = "small"
    fixed_point: str = "pgd"
    seed: int = 0


def pretrain(
    settings: PretrainSettings,
    *,
    manifest: dict[str, Any],
    device: torch.device,
    keep: Callable[[Checkpoint], None],
    watch: Watch = unwatched,
) -> Checkpoint:
    """Return weights trained as `settings` say; the same settings on the same machine give the same weights.

    Parameters
    ----------
    manifest
        Recorded with the weights; the settings are added.
    keep
        Called with the checkpoint at intervals.
    watch
        Called after each step with stage "denoise" or "train"; may raise Cancelled.
    """
    torch.manual_seed(settings.seed)
    if settings.size not in SIZES:
        raise BadInput(f"unknown size of network {settings.size!r}", f"Choose one of {', '.join(SIZES)}.")
    architecture = Architecture(
        2 if settings.modality == "mri" else 1, SIZES[settings.size], settings.network, settings.fixed_point
    )
    model = EquilibriumModel(architecture).to(device)
    train_denoiser(model, settings, device, watch)
    weights = {name: value.detach().clone().cpu() for name, value in model.state_dict().items()}
    start = Checkpoint(
        architecture, weights, {}, torch.empty(0, dtype=torch.uint8), 0, manifest | {"pretrain": asdict(settings)}
    )
    keep(start)
    if not settings.equivariant_steps:
        return start
    train = TrainSettings(
        steps=settings.equivariant_steps,
        learning_rate=settings.equivariant_rate,
        seed=settings.seed + 1,
    )
    draw = _draw_mri if settings.modality == "mri" else _draw_ct
    done = finetune(
        start,
        lambda generator: draw(settings, generator, device),
        train,
        manifest=start.manifest,
        device=device,
        keep=keep,
        watch=watch,
    )
    return replace(done, step=0).without_training_state()


def train_denoiser(model: EquilibriumModel, settings: PretrainSettings, device: torch.device, watch: Watch) -> None:
    """Train the denoiser of a model on generated images with white noise, the clean images as targets."""
    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.denoise_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, settings.denoise_steps))
    direction: Tensor | None = None
    low, high = (math.log(value) for value in settings.noise)
    for step in range(1, settings.denoise_steps + 1):
        clean = _objects(settings, settings.denoise_batch, generator)
        level = torch.exp(low + (high - low) * torch.rand((clean.shape[0], 1, 1), generator=generator))
        if clean.is_complex():
            noise = torch.view_as_complex(torch.randn((*clean.shape, 2), generator=generator))
        else:
            noise = torch.randn(clean.shape, generator=generator)
        clean, noisy = clean.to(device), (clean + level * noise).to(device)
        error = (model.denoise(noisy) - clean).abs().square().mean(dim=(-2, -1))
        # divided by the noise, so that weak noise counts as much as strong; floor against dominance of the weakest
        loss = (error / (level[:, 0, 0].to(device) ** 2 + 1e-4)).mean()
        part = as_channels(noisy[: settings.contraction_batch])
        if direction is None:
            direction = torch.randn(part.shape, generator=generator).to(device)
        gain, direction = expansion(model.denoiser, part, direction)
        excess = (gain - settings.largest_gain).clamp(min=0).square().mean()
        loss = loss + settings.contraction_weight * excess
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        watch(
            Progress(
                "denoise",
                step,
                settings.denoise_steps,
                terms=(("total", float(loss.detach())), ("gain", float(gain.detach().max()))),
            )
        )


def _objects(settings: PretrainSettings, batch: int, generator: torch.Generator) -> Tensor:
    images = random_images(batch, settings.side, generator)
    if settings.modality == "mri":
        return images * random_phase(batch, settings.side, generator)
    return images


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _draw_ct(settings: PretrainSettings, generator: torch.Generator, device: torch.device) -> Measured:
    """Draw a geometry and sinograms measured at twice the resolution of the reconstruction, with white noise."""
    side = settings.side
    views = int(_between(*settings.views, generator))
    angles = np.linspace(0, np.pi, views, endpoint=False) + _between(0, np.pi, generator)
    fine = TomographyPhysics(ParallelBeam(angles, 0.5, side - 0.5), 2 * side)
    objects = random_images(settings.equivariant_batch, 2 * side, generator)
    sinogram = fine(objects).reshape(settings.equivariant_batch, views, side, 2).mean(-1)
    noise = math.exp(_between(math.log(5e-4), math.log(2e-2), generator)) * float(sinogram.max())
    sinogram = sinogram + noise * torch.randn(sinogram.shape, generator=generator)
    physics = TomographyPhysics(ParallelBeam(angles, 1.0, (side - 1) / 2), side)
    return Measured(sinogram.to(device), physics, math.pi / views, noise)


def _draw_mri(settings: PretrainSettings, generator: torch.Generator, device: torch.device) -> Measured:
    """Draw coil maps, a mask and noisy k-space."""
    side = settings.side
    coils = int(_between(1, 9, generator))
    maps = random_coil_maps(coils, side, generator)
    objects = _objects(settings, settings.equivariant_batch, generator)
    acceleration = int(_between(settings.accelerations[0], settings.accelerations[1] + 1, generator))
    mask = torch.from_numpy(
        undersampling_mask(
            np.ones((side, side), dtype=np.bool_),
            acceleration,
            centre_lines=max(4, side // 12),
            phase_axis=int(_between(0, 2, generator)),
        )
    )
    noise = math.exp(_between(math.log(1e-3), math.log(5e-2), generator))
    kspace = simulate_kspace(objects, maps, noise, generator) * mask
    return Measured(kspace.to(device), CartesianPhysics(maps[None], mask).to(device), noise=noise)
