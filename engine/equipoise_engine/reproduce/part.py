"""One part of the comparison: a method trained and tested once, its figures and images left in a folder."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch.profiler import ProfilerActivity, profile

from equipoise_engine import __version__
from equipoise_engine.device import device_name, prepared
from equipoise_engine.errors import BadInput, NumericalTrouble
from equipoise_engine.finetune import TrainSettings, draw_from, training_step
from equipoise_engine.measured import Measured
from equipoise_engine.metrics import nmse, psnr, ssim
from equipoise_engine.model import EquilibriumModel
from equipoise_engine.pretrain import PretrainSettings, train_denoiser
from equipoise_engine.progress import Progress
from equipoise_engine.reproduce.command import read_result
from equipoise_engine.reproduce.contenders import (
    Tested,
    build_model,
    reconstruct,
    run_classical,
    run_plug_and_play,
    train_settings,
)
from equipoise_engine.reproduce.evidence import of_denoiser, of_gradients, of_model
from equipoise_engine.reproduce.presets import CONTROL, DENOISER, LEARNED, Part, Preset
from equipoise_engine.reproduce.problem import Problem, build
from equipoise_engine.weights import Checkpoint, read_checkpoint, write_checkpoint

Say = Callable[[str], None]
EXAMINED = ("deq-ei-id", "deq-sup-id", "deq-ei-jfb", CONTROL, "pnp")
"""Whose claims are measured: the method of the paper and its controls; pnp has the denoiser that all start from."""
WEIGHTS, IMAGES, RESULT = "weights.safetensors", "images.safetensors", "result.json"


def run_part(part: Part, parts: Path, say: Say) -> None:
    """Train and test one method, and write weights, images and, last of all, the result into its folder.

    Parameters
    ----------
    parts
        Folder of all parts; the denoiser's weights are read from there.
    say
        Called with lines of progress.

    Raises
    ------
    BadInput
        The denoiser is needed and has not been trained, or the folder cannot be written.
    """
    began = time.monotonic()
    preset, device = part.preset, prepared(part.device)
    folder = parts / part.name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(part.seed)
    content: dict[str, Any] = {"settings": part.settings, "method": part.method, "seed": part.seed}
    model: EquilibriumModel | None = None
    if part.method == DENOISER or part.method in (*LEARNED, CONTROL) or part.needs_denoiser:
        model = build_model(part.method, preset).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if part.needs_denoiser:
            denoiser = replace(part, method=DENOISER, seed=0)
            if read_result(parts, denoiser) is None:
                raise BadInput(f"{parts / denoiser.name} holds no denoiser of these settings", "Run that part first.")
            model.load_state_dict(read_checkpoint(parts / f"{DENOISER}-0" / WEIGHTS).weights)
    if part.method == DENOISER:
        assert model is not None
        _train_denoiser(model, preset, device, say)
    else:
        problem = build(preset, device)
        if part.method in (*LEARNED, CONTROL):
            assert model is not None
            content |= train(model, problem, part, say)
            tested = reconstruct(
                model,
                problem.test,
                train_settings(part.method, preset).backward,
                tolerance=preset.test_tolerance,
                max_steps=preset.test_max_steps,
            )
        elif model is not None:
            tested = run_plug_and_play(model, problem, preset)
        else:
            tested = run_classical(part.method, problem, preset)
        content |= _judge(tested, problem)
        if model is not None and part.method in EXAMINED:
            say("measuring the claims")
            content["diagnostics"] = _examine(model, problem, tested, part)
        say(f"PSNR {np.mean(content['psnr']):.2f} dB")
        images = {"image": tested.images, "truth": problem.truth}
        _replace(folder / IMAGES, save({name: value.detach().cpu().contiguous() for name, value in images.items()}))
    if model is not None and part.method != "pnp":
        manifest = {"program": f"Equipoise {__version__}", "method": part.method, "seed": part.seed}
        weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        empty = torch.empty(0, dtype=torch.uint8)
        write_checkpoint(Checkpoint(model.architecture, weights, {}, empty, preset.steps, manifest), folder / WEIGHTS)
    content |= {
        "seconds": time.monotonic() - began,
        "device": device_name(device),
        "torch": torch.__version__,
        "parameters": None if model is None else sum(p.numel() for p in model.parameters()),
    }
    _replace(folder / RESULT, json.dumps(_plain(content)).encode())


def train(model: EquilibriumModel, problem: Problem, part: Part, say: Say) -> dict[str, Any]:
    """Train a model in place and return its training curve and the cost of a step.

    The truth of the test serves the points of the curve alone: the weights are those after the last step.
    """
    preset, settings = part.preset, train_settings(part.method, part.preset)
    # what must not be read is not there to be read
    training = problem.training if settings.objective.data_term == "supervised" else _blind(problem.training)
    watched = problem.test.select(torch.arange(min(4, preset.test_images), device=problem.test.y.device))
    source = draw_from((training,), preset.batch)
    optimiser = torch.optim.Adam(model.parameters(), lr=preset.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, preset.steps)
    # one generator for the order of the measurements, which is the same for all methods, whatever else they draw
    order, generator = (torch.Generator().manual_seed(2 * part.seed + number) for number in (1, 2))
    peak = _peak_of_step(model, source(torch.Generator().manual_seed(0)), settings)
    curve: list[dict[str, float | None]] = []
    times: list[float] = []
    losses: list[float] = []
    unconverged = 0

    def point(step: int) -> None:
        tested = reconstruct(
            model, watched, settings.backward, tolerance=preset.tolerance, max_steps=2 * preset.max_steps
        )
        assert watched.truth is not None
        quality = float(np.mean(psnr(tested.images, watched.truth, problem.data_range)))
        loss = float(np.mean(losses[-preset.curve_every :])) if losses else None
        curve.append({"step": step, "seconds": sum(times), "loss": loss, "psnr": quality})
        told = "" if loss is None else f"loss {loss:.3g}, "
        say(f"step {step} of {preset.steps}: {told}PSNR {quality:.2f} dB, {sum(times):.0f} s")

    point(0)
    skipped = 0
    for step in range(1, preset.steps + 1):
        began = time.perf_counter()
        drawn = source(order)
        try:
            report = training_step(model, optimiser, drawn, settings, generator)
            losses.append(report.terms[0][1])
            unconverged += report.unconverged
        except NumericalTrouble:
            skipped += 1  # the weights are unchanged
        schedule.step()
        times.append(time.perf_counter() - began)
        if step % preset.curve_every == 0 or step == preset.steps:
            point(step)
    return {
        "curve": curve,
        "seconds_per_step": float(np.median(times)),
        "peak_mib": peak / 2**20,
        "skipped_steps": skipped,
        "unconverged_solves": unconverged,
    }


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Return the most memory in bytes that torch held while `run` ran, beyond what it held before.

    On the CPU from the profiler's record of each allocation and release.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    kineto = profiler.profiler.kineto_results
    assert kineto is not None
    events = sorted((e.start_ns(), e.nbytes()) for e in kineto.events() if e.name() == "[memory]")
    return int(np.max(np.cumsum([0, *(size for _, size in events)])))


def _peak_of_step(model: EquilibriumModel, drawn: Measured, settings: TrainSettings) -> int:
    """Return the peak memory in bytes of one training step, taken with a copy of the model."""
    twin = copy.deepcopy(model)
    optimiser = torch.optim.Adam(twin.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    return peak_memory(lambda: training_step(twin, optimiser, drawn, settings, generator), drawn.y.device)


def _train_denoiser(model: EquilibriumModel, preset: Preset, device: torch.device, say: Say) -> None:
    settings = PretrainSettings(
        preset.modality,
        side=preset.side,
        denoise_steps=preset.denoise_steps,
        denoise_batch=preset.denoise_batch,
        seed=preset.data_seed + 1,
    )

    def watch(progress: Progress) -> None:
        if progress.step % max(1, preset.denoise_steps // 10) == 0:
            terms = ", ".join(f"{name} {value:.3g}" for name, value in progress.terms)
            say(f"step {progress.step} of {progress.total}: {terms}")

    train_denoiser(model, settings, device, watch)


def _examine(model: EquilibriumModel, problem: Problem, tested: Tested, part: Part) -> dict[str, Any]:
    found = of_denoiser(model, tested.images, part.seed)
    if part.method != "pnp":
        found |= of_model(model, problem, tested.images, part.preset)
    if part.method in ("deq-ei-id", "pnp"):
        found["gradients"] = of_gradients(model, _blind(problem.training), part.preset)
    return found


def _blind(measured: Measured) -> Measured:
    return Measured(measured.y, measured.physics, measured.view_step_rad, measured.noise)


def _judge(tested: Tested, problem: Problem) -> dict[str, Any]:
    image, truth = tested.images, problem.truth
    judged: dict[str, Any] = {
        "psnr": psnr(image, truth, problem.data_range).tolist(),
        "ssim": ssim(image, truth, problem.data_range).tolist(),
        "nmse": nmse(image, truth).tolist(),
        "chosen": tested.chosen,
    }
    if tested.residual is not None and tested.residuals is not None:
        judged["converged"] = tested.converged
        judged["residual"] = tested.residual.tolist()
        judged["residuals"] = {
            "median": tested.residuals.median(dim=1).values.tolist(),
            "largest": tested.residuals.amax(dim=1).tolist(),
        }
    return judged


def _plain(value: Any) -> Any:
    """Return the same tree with null for numbers that JSON cannot hold."""
    match value:
        case float():
            return value if np.isfinite(value) else None
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
