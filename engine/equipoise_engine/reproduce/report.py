"""From what the parts left: the table, the figures, and one page that says what was measured and how."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.torch import load_file

from equipoise_engine import __version__
from equipoise_engine.reproduce.command import PAGE, RESULTS, TABLE, Comparison, read_result
from equipoise_engine.reproduce.figures import (
    Results,
    gradient_figure,
    images_figure,
    png,
    proximal_figure,
    residual_figure,
    training_figure,
)
from equipoise_engine.reproduce.part import IMAGES
from equipoise_engine.reproduce.presets import LEARNED, METHODS, PRESETS, TITLES, Preset

MAIN = "deq-ei-id"
COLUMNS = ("PSNR (dB)", "SSIM", "NMSE", "s per step", "MiB per step", "converged")
STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; }
td, th { padding: 0.15em 0.8em; border-bottom: 1px solid #ccc; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; }
figure { margin: 1.5em 0; }
"""
CLAIMS = (
    ("fbp", 0.0),
    ("zerofilled", 0.0),
    ("tv", 0.0),
    ("wavelet", 0.0),
    ("pnp", 0.0),
    ("ei-unet", 0.0),
    ("ei-unrolled", 0.0),
    ("deq-ei-jfb", 0.0),
    ("deq-sup-id", -1.0),
)
"""By how many dB at least deq-ei-id is expected ahead of each method."""


def write_report(wanted: Comparison) -> None:
    """Write results, table, figures and page of the parts that are complete into the folder of the comparison."""
    preset = PRESETS[wanted.modality, wanted.preset]
    parts = wanted.out / "parts"
    found: dict[str, list[dict[str, Any]]] = {}
    for part in wanted.parts:
        content = read_result(parts, part)
        if content is not None:
            found.setdefault(part.method, []).append(content)
    shown = {method: found[method] for method in METHODS[preset.modality] if method in found}
    rows = [_row(method, runs) for method, runs in shown.items()]
    diagnostics = {method: runs[0]["diagnostics"] for method, runs in found.items() if "diagnostics" in runs[0]}
    _write(wanted.out / RESULTS, json.dumps({"rows": rows, "diagnostics": diagnostics}, indent=1))
    _write(wanted.out / TABLE, markdown_table(shown))
    drawn = _figures(parts, shown, diagnostics)
    (wanted.out / "figures").mkdir(exist_ok=True)
    pictures = {}
    for name, (figure, caption) in drawn.items():
        pictures[name] = (png(figure), caption)
        (wanted.out / "figures" / f"{name}.png").write_bytes(pictures[name][0])
    _write(wanted.out / PAGE, _page(wanted, preset, found, shown, diagnostics, pictures))


def markdown_table(shown: Results) -> str:
    """Return the table of the comparison, one line for each method."""
    lines = [f"| method | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    lines += [f"| {method} | {' | '.join(_cells(method, runs))} |" for method, runs in shown.items()]
    return "\n".join(lines) + "\n"


def margins(shown: Results) -> list[tuple[str, float, float, bool]]:
    """Return for each expected order: the other method, how many dB deq-ei-id is ahead, its error, whether it holds.

    The difference is taken image by image, means over seeds; the error is the standard error over the images.
    """
    if MAIN not in shown:
        return []
    result = []
    for other, least in CLAIMS:
        if other in shown:
            apart = _by_image(shown, MAIN) - _by_image(shown, other)
            error = float(apart.std(ddof=1) / np.sqrt(apart.size)) if apart.size > 1 else float("nan")
            result.append((other, float(apart.mean()), error, bool(apart.mean() > least)))
    return result


def _by_image(shown: Results, method: str) -> NDArray[np.float64]:
    values = np.array([run["psnr"] for run in shown[method]], dtype=np.float64)
    return np.asarray(values.mean(axis=0), dtype=np.float64)


def _row(method: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    def pooled(name: str) -> NDArray[np.float64]:
        return np.array([run[name] for run in runs], dtype=float)

    def cost(name: str) -> float | None:
        values = [run[name] for run in runs if name in run]
        return float(np.median(values)) if values else None

    return {
        "method": method,
        "psnr_mean": float(pooled("psnr").mean()),
        "psnr_std": float(pooled("psnr").std()),
        "ssim_mean": float(pooled("ssim").mean()),
        "nmse_mean": float(pooled("nmse").mean()),
        "seconds_per_step": cost("seconds_per_step"),
        "peak_mib": cost("peak_mib"),
    }


def _cells(method: str, runs: Any) -> list[str]:
    row = _row(method, list(runs))
    converged = [run["converged"] for run in runs if run.get("converged") is not None]
    iterates = bool(converged) and method not in ("ei-unet", "ei-unrolled")
    return [
        f"{row['psnr_mean']:.2f} ± {row['psnr_std']:.2f}",
        f"{row['ssim_mean']:.4f}",
        f"{row['nmse_mean']:.3g}",
        "" if row["seconds_per_step"] is None else f"{row['seconds_per_step']:.3g}",
        "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        f"{100 * float(np.mean(converged)):.0f} %" if iterates else "",
    ]


def _figures(
    parts: Path, shown: dict[str, list[dict[str, Any]]], diagnostics: dict[str, Any]
) -> dict[str, tuple[Figure, str]]:
    figures: dict[str, tuple[Figure, str]] = {}
    stacks = {}
    truth: NDArray[Any] | None = None
    for method, runs in shown.items():
        tensors = load_file(parts / f"{method}-{runs[0]['seed']}" / IMAGES)
        stacks[method] = tensors["image"].abs().numpy()
        truth = tensors["truth"].abs().numpy()
    if truth is not None:
        chosen = list(range(min(2, truth.shape[0])))
        caption = (
            "Reconstructions of the first test images, and the magnitude of their error ten times brighter (seed 0)."
        )
        figures["images"] = (images_figure(stacks, truth, chosen, float(truth.max())), caption)
    trained = {method: runs for method, runs in shown.items() if "curve" in runs[0]}
    if trained:
        caption = (
            "PSNR of the first test images while training. The weights are those of the last step, never chosen by it."
        )
        figures["training"] = (training_figure(trained), caption)
    iterated = {method: runs for method, runs in shown.items() if "residuals" in runs[0] and method not in ("ei-unet",)}
    if iterated:
        caption = "Fixed-point residual on the test measurements: median and, shaded, up to the worst image (seed 0)."
        figures["residuals"] = (residual_figure(iterated), caption)
    if diagnostics:
        caption = (
            "Evidence for a proximal map of an invariant prior, with 95 % intervals: deq-ei-id and its controls; pnp "
            "stands for the denoiser that all start from (seed 0)."
        )
        figures["proximal"] = (proximal_figure(diagnostics), caption)
    if any("gradients" in entry for entry in diagnostics.values()):
        caption = "Cosine of the training gradient in each backward mode to the exact one; bars span the draws."
        figures["gradients"] = (gradient_figure(diagnostics), caption)
    return figures


def _page(
    wanted: Comparison,
    preset: Preset,
    found: Mapping[str, Any],
    shown: dict[str, list[dict[str, Any]]],
    diagnostics: Mapping[str, Any],
    pictures: Mapping[str, tuple[bytes, str]],
) -> str:
    escape = html.escape
    start = (
        "an untrained network"
        if wanted.from_scratch
        else "the same denoiser, trained on generated images of another class"
    )
    machine = next((run[0] for run in found.values()), {"device": "unknown", "torch": "unknown"})
    head = "".join(f"<th>{escape(name)}</th>" for name in ("method", *COLUMNS))
    body = "".join(
        f"<tr><td title='{escape(TITLES[method])}'>{method}</td>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(method, runs))
        + "</tr>"
        for method, runs in shown.items()
    )
    order = "".join(
        f"<tr><td>{other}</td><td>{ahead:+.2f} ± {error:.2f} dB</td><td>{'yes' if holds else 'no'}</td></tr>"
        for other, ahead, error, holds in margins(shown)
    )
    figures = "".join(
        f"<figure><img alt='{name}' src='data:image/png;base64,{base64.b64encode(content).decode()}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for name, (content, caption) in pictures.items()
    )
    verdicts = "".join(
        f"<h3>{method}</h3><ul>"
        + "".join(
            f"<li>{escape(name.replace('_', ' '))}: {escape(verdict['words'])}</li>"
            for name, verdict in entry["proximal"]["verdicts"].items()
        )
        + "</ul>"
        for method, entry in diagnostics.items()
    )
    sizes = "".join(f"<tr><td>{name}</td><td>{escape(str(value))}</td></tr>" for name, value in asdict(preset).items())
    chosen = "".join(
        f"<li>{method}: {escape(', '.join(f'{name} {value}' for name, value in runs[0]['chosen'].items()))}</li>"
        for method, runs in shown.items()
        if runs[0].get("chosen")
    )
    skipped = sum(run.get("skipped_steps", 0) for runs in found.values() for run in runs)
    planned = dict.fromkeys(part.method for part in wanted.parts)
    missing = [method for method in planned if method not in found]
    glossary = "".join(
        f"<li>{method}: {escape(TITLES[method])}</li>" for method in (*shown, *(m for m in found if m not in shown))
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison, {wanted.modality}, {wanted.preset}</title>
<style>{STYLE}</style></head><body>
<h1>Equilibrium reconstruction by equivariant imaging: {wanted.modality.upper()}, preset {wanted.preset}</h1>
<p>The set of methods of arXiv:2511.18667 on simulated measurements; nothing here is a figure of that paper.
Equipoise {__version__}, torch {escape(machine["torch"])}, {escape(machine["device"])}.</p>
{f"<p><b>Missing, because the part failed: {', '.join(missing)}.</b></p>" if missing else ""}
<table><tr>{head}</tr>{body}</table>
<p>Mean and standard deviation over {preset.test_images} test images and {wanted.seeds} seeds of the training; PSNR and
SSIM of magnitudes with one data range. Seconds are the median of the training steps, of parts that ran {wanted.jobs} at
a time; MiB the most memory that torch held in one step beyond what it held before. Converged: share of test images
whose fixed-point residual fell below {preset.test_tolerance:g} within {preset.test_max_steps} iterations.</p>
<h2>Does the order come out as the paper says?</h2>
<table><tr><th>{MAIN} against</th><th>ahead by</th><th>as expected</th></tr>{order}</table>
<p>Paired over the images, with the standard error. Expected is more than 0 dB, against supervised training more than -1
dB. A margin within twice its error says little.</p>
<h2>How it was made</h2>
<ul>
<li>{_how_measured(preset)} The physics, the noise and the {preset.training_images} sets of measurements to train on are
drawn once and fixed; the test objects are others of the same class.</li>
<li>All learned methods ({", ".join(LEARNED)}) have the same parameters by name and shape, start from {start}, take the
same {preset.steps} steps of Adam with the same rate and batch, and see the same measurements in the same order. Only
deq-sup-id is given their true images. {skipped} steps were left out for a gradient that was not finite.</li>
<li>True images of the test serve the training curves and the final figures alone: no weights, stopping time or setting
of a learned method were chosen by them in this run.</li>
<li>In favour of the methods that are not trained, their settings are the best for these very test images:
<ul>{chosen}</ul></li>
<li>Recorruption keeps all but deq-sup-id, which is given the measurements as they are, from fitting the noise. The
equivariance term has the weight {preset.equivariance_weight:g} where there is one. Only the equilibrium models carry a
penalty on a denoiser that expands, of weight {preset.contraction_weight:g}.</li>
<li>ei-unrolled takes {preset.unrolled_steps} iterations, in training and in the test; the equilibrium models take as
many as their tolerance asks for, at most {preset.max_steps} in training.</li>
</ul>
{figures}
<h2>In words: is the denoiser a proximal map?</h2>
<p>Measured at reconstructions, not proven anywhere else; a property that is violated once is refuted, one that is not
is only consistent with what was seen.</p>
{verdicts}
<h2>Names and sizes</h2>
<ul>{glossary}</ul>
<table>{sizes}</table>
</body></html>
"""


def _how_measured(preset: Preset) -> str:
    grid = f"{preset.side} x {preset.side}"
    if preset.modality == "ct":
        return (
            f"{preset.views} equally spaced parallel-beam views of generated objects, projected on a grid twice as "
            f"fine as the {grid} images, with white noise of {100 * preset.noise:g} % of the largest value."
        )
    return (
        f"Cartesian k-space of generated complex objects, {preset.coils} coil(s), one of {preset.acceleration} lines "
        f"at random with {preset.centre_lines} in the middle, made by the same operator on the same {grid} grid as the "
        f"reconstruction, with white noise of {preset.noise:g} in real and imaginary part (brightest pixel: 1)."
    )


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
