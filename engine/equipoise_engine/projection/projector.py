"""The projector that suits a geometry, an image grid and a device."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import psutil
import torch

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.geometry import VectorGeometry
from equipoise_engine.projection.contract import Projector
from equipoise_engine.projection.gather import GatherProjector
from equipoise_engine.projection.joseph import JosephProjector
from equipoise_engine.projection.lines import trace
from equipoise_engine.projection.sparse import LARGEST_MATRIX, SparseProjector, entry_bytes
from equipoise_engine.projection.strip import StripProjector, footprint_optics

Footprint = Literal["joseph", "strip"]
Engine = Literal["auto", "sparse", "matrix-free"]

_CPU = torch.device("cpu")
_SHARE_OF_MEMORY = 0.25
_SAMPLED = 24


def build_projector(
    geometry: VectorGeometry,
    columns: int,
    shape: tuple[int, int],
    pixel_mm: float,
    *,
    footprint: Footprint = "joseph",
    engine: Engine = "auto",
    device: torch.device = _CPU,
    budget_bytes: int | None = None,
) -> Projector:
    """Return a projector and its exact transpose.

    Parameters
    ----------
    geometry
        The views; z is left out of account.
    columns
        Number of detector columns.
    shape
        Rows and columns of the image, whose middle is the origin.
    pixel_mm
        Side of an image pixel; it need not be that of a detector element.
    footprint
        "joseph" interpolates along image lines; "strip" averages over the width of a detector element.
    engine
        "sparse" keeps the matrix and its transpose; "matrix-free" computes the weights anew each time; "auto" takes
        the quicker one that fits into memory.
    device
        Where it computes.
    budget_bytes
        Memory that sparse matrices may take in single precision; None allows a quarter of what is free.

    Raises
    ------
    BadInput
        A name is unknown, sparse matrices were asked for and do not fit, or as of `lines.trace` and
        `strip.footprint_optics`.
    Unsupported
        The strip footprint on a device other than the CPU, where its matrices do not fit.
    """
    if footprint not in ("joseph", "strip"):
        raise BadInput(f"unknown footprint {footprint!r}", "Choose joseph or strip.")
    if engine not in ("auto", "sparse", "matrix-free"):
        raise BadInput(f"unknown engine {engine!r}", "Choose auto, sparse or matrix-free.")
    on_cpu = device.type == "cpu"
    # On two cores, Joseph's weights are computed as quickly as they are read (512 x 512, 180 views: 1.2 GB); those of
    # the strip take six to eight times as long.
    if engine == "sparse" or (engine == "auto" and not (on_cpu and footprint == "joseph")):
        needed = estimate_bytes(geometry, columns, shape, pixel_mm, footprint=footprint)
        budget = _budget(device) if budget_bytes is None else budget_bytes
        if needed <= min(budget, LARGEST_MATRIX // 2 * entry_bytes(torch.float32)):
            return SparseProjector(geometry, columns, shape, pixel_mm, footprint=footprint, device=device)
        if engine == "sparse":
            raise BadInput(
                f"the sparse matrices take about {needed / 2**20:,.0f} MiB; {budget / 2**20:,.0f} MiB are allowed",
                "Choose the engine matrix-free, or allow more memory.",
            )
    if footprint == "joseph":
        if on_cpu:
            return JosephProjector(geometry, columns, shape, pixel_mm)
        return GatherProjector(geometry, columns, shape, pixel_mm, device=device)
    if on_cpu:
        return StripProjector(geometry, columns, shape, pixel_mm)
    raise Unsupported(
        f"the strip footprint on {device.type} takes sparse matrices, which were not asked for or do not fit",
        "Choose the footprint of Joseph, or the CPU.",
    )


def estimate_bytes(
    geometry: VectorGeometry, columns: int, shape: tuple[int, int], pixel_mm: float, *, footprint: Footprint
) -> int:
    """Return the memory of the sparse matrices in single precision: about, and rather too much than too little.

    Parameters
    ----------
    geometry, columns, shape, pixel_mm, footprint
        As of `build_projector`.

    Raises
    ------
    BadInput
        As of `build_projector`.
    """
    along_y, along_x = trace(geometry, columns, shape, pixel_mm)
    if footprint == "joseph":
        entries = 2 * (along_y.crossings + along_x.crossings)
    else:
        entries = _strip_entries(footprint_optics(geometry, shape, pixel_mm), columns, shape)
    return entries * entry_bytes(torch.float32) + 4 * (geometry.views * columns + math.prod(shape))


def _strip_entries(
    optics: np.ndarray[tuple[int, ...], np.dtype[np.float64]], columns: int, shape: tuple[int, int]
) -> int:
    """Return how many detector elements all pixels together are seen on, from pixels here and there."""
    rows = np.unique(np.linspace(0, shape[0] - 1, _SAMPLED).round())
    places = np.unique(np.linspace(0, shape[1] - 1, _SAMPLED).round())
    down, across = np.meshgrid(rows, places, indexing="ij")
    part = optics[:, :, None, None]
    seen = []
    for y, x in ((-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)):
        above = part[:, 0] + part[:, 1] * (across + x) + part[:, 2] * (down + y)
        below = part[:, 3] + part[:, 4] * (across + x) + part[:, 5] * (down + y)
        seen.append(part[:, 6] + np.where(part[:, 7] == 0, above / below, part[:, 7] * np.arctan2(above, below)))
    first = np.clip(np.floor(np.min(seen, axis=0) + 0.5), 0, columns)
    last = np.clip(np.floor(np.max(seen, axis=0) + 0.5), -1, columns - 1)
    return math.ceil(1.05 * optics.shape[0] * math.prod(shape) * float(np.maximum(last - first + 1, 0).mean()))


def _budget(device: torch.device) -> int:
    free = psutil.virtual_memory().available
    if device.type == "cuda":
        # the matrices are made on the host
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return int(_SHARE_OF_MEMORY * free)


__all__ = ["Engine", "Footprint", "Projector", "build_projector", "estimate_bytes"]
