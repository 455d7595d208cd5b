"""Compare methods on a complete CT scan of which only every k-th view is used, by the views that were left out.

    python tests/bench/undersampled.py SCAN --views-every 3 [--model FILE ...] [--slices 10]

Prints, for each method, the relative error of A x on the unused views (in total and in three bands of detector
frequency), and the PSNR inside the field of view against CGLS on all views. TV is run at several strengths; the one
with the lowest unseen error, which no user could know, is marked.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.measured import Undersampling, measure
from equipoise_engine.methods import BatchResult, run_measured, with_defaults
from equipoise_engine.opening import open_scan
from equipoise_engine.progress import unwatched
from equipoise_engine.protocol import ReconstructSettings
from equipoise_engine.recipe import Recipe
from equipoise_engine.weights import read_checkpoint
from equipoise_resources import weights_path


@dataclass(frozen=True)
class Row:
    """One method's figures."""

    method: str
    seconds: float
    unseen: float
    bands: tuple[float, float, float]
    psnr: float
    steps: int
    outcome: str


def compare(path: Path, views_every: int, models: list[Path], slices: int, strengths: list[float]) -> list[Row]:
    """Return the rows of the comparison over evenly spaced slices."""
    scan = open_scan(path, Recipe(), unwatched)
    assert isinstance(scan, CtAcquisition)
    device = torch.device("cpu")
    stride = max(1, scan.slices // slices)
    chosen = torch.arange(stride // 2, scan.slices, stride)[:slices]
    full = measure(scan, slice(0, scan.slices), device)
    y_full = full.y[chosen]
    few = measure(scan, slice(0, scan.slices), device, Undersampling(views_every=views_every)).select(chosen)
    views = y_full.shape[1]
    unseen = torch.ones(views, dtype=torch.bool)
    unseen[::views_every] = False
    everything = full.physics
    assert isinstance(everything, TomographyPhysics)
    support = everything.field_of_view

    def settings(method: str, **changes: float) -> ReconstructSettings:
        given = ReconstructSettings(
            method=method, iterations=int(changes.get("iterations", 0)), strength=changes.get("strength", 0.0)
        )
        return with_defaults(given, scan)[1]

    complete = run_measured(replace(full, y=y_full), settings("cgls", iterations=12), None)
    reference = complete.image

    def row(name: str, done: BatchResult, seconds: float) -> Row:
        predicted, image = everything(done.whole), done.image
        bands = _band_errors((predicted - y_full)[:, unseen], y_full[:, unseen])
        error = (image - reference)[:, support].square().mean(1)
        peak = reference[:, support].amax(1)
        psnr = float((10 * torch.log10(peak**2 / error)).mean())
        total = float((predicted - y_full)[:, unseen].norm() / y_full[:, unseen].norm())
        return Row(name, seconds, total, bands, psnr, done.iterations, done.outcome)

    rows = [row("CGLS 12, all views", complete, 0.0)]
    wanted = [("FBP", settings("fbp"), None), ("CGLS", settings("cgls"), None)]
    wanted += [(f"TV {strength:g}", settings("tv", strength=strength), None) for strength in strengths]
    for name, chosen_settings, _ in wanted:
        began = time.perf_counter()
        done = run_measured(few, chosen_settings, None)
        rows.append(row(name, done, time.perf_counter() - began))
    for path_of_model in models:
        model = read_checkpoint(path_of_model).model().eval()
        began = time.perf_counter()
        done = run_measured(few, settings("deq"), model)
        rows.append(row(path_of_model.stem, done, time.perf_counter() - began))
    return rows


def _band_errors(error: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Relative error in the lower tenth, up to half, and above half of the detector's frequencies."""
    spectrum, whole = torch.fft.rfft(error, dim=-1).abs() ** 2, torch.fft.rfft(y, dim=-1).abs() ** 2
    count = spectrum.shape[-1]
    edges = (0, count // 10, count // 2, count)
    return tuple(  # type: ignore[return-value]
        math.sqrt(float(spectrum[..., a:b].sum() / whole[..., a:b].sum())) for a, b in pairwise(edges)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--views-every", type=int, default=3)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--slices", type=int, default=10)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.003, 0.01, 0.02, 0.04, 0.08])
    arguments = parser.parse_args()
    models = arguments.model or [weights_path("ct")]
    rows = compare(arguments.scan, arguments.views_every, models, arguments.slices, arguments.strengths)
    best = min((r for r in rows if r.method.startswith("TV")), key=lambda r: r.unseen)
    print(f"{'method':28} unseen %   low/mid/high %          PSNR dB  steps  seconds")
    for r in rows:
        mark = " *" if r is best else ""
        bands = "/".join(f"{100 * b:.2f}" for b in r.bands)
        print(
            f"{r.method + mark:28} {100 * r.unseen:7.2f}   {bands:22} {r.psnr:8.2f}  {r.steps:5d}  {r.seconds:7.2f}"
            f"  {r.outcome}"
        )
    print("* lowest unseen error of the strengths tried, an oracle's choice")


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
