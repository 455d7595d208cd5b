"""The figures of the report, drawn with matplotlib's objects; each function returns one figure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""What the parts of each method left, one for each seed, by method in the order of the table."""


def png(figure: Figure, dots_per_inch: int = 110) -> bytes:
    """Return a figure as a PNG file."""
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(stream, format="png", dpi=dots_per_inch, bbox_inches="tight")
    return stream.getvalue()


def images_figure(
    images: Mapping[str, NDArray[Any]], truth: NDArray[Any], chosen: Sequence[int], data_range: float
) -> Figure:
    """Return the reconstructions of some test images, and below each its error.

    Parameters
    ----------
    images
        Magnitudes `(image, y, x)` by method.
    truth
        `(image, y, x)`.
    chosen
        Which images.
    data_range
        White in the images; a tenth of it is white in the error maps.
    """
    columns = {"truth": truth, **images}
    figure = Figure(figsize=(1.5 * len(columns), 3.1 * len(chosen)), layout="constrained")
    axes = figure.subplots(2 * len(chosen), len(columns), squeeze=False)
    for row, index in enumerate(chosen):
        for column, (name, stack) in enumerate(columns.items()):
            above, below = axes[2 * row, column], axes[2 * row + 1, column]
            above.imshow(stack[index], cmap="gray", vmin=0, vmax=data_range)
            below.imshow(np.abs(stack[index] - truth[index]), cmap="magma", vmin=0, vmax=data_range / 10)
            if row == 0:
                above.set_title(name, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def training_figure(results: Results) -> Figure:
    """Return PSNR against steps and against seconds for each method that was trained; one line for each seed."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for number, (method, runs) in enumerate(results.items()):
        for first, run in enumerate(runs):
            style: dict[str, Any] = {"color": f"C{number % 10}", "linewidth": 1.2}
            label = method if first == 0 else None
            quality = np.array([point["psnr"] for point in run["curve"]], dtype=float)
            by_step.plot([point["step"] for point in run["curve"]], quality, label=label, **style)
            by_time.plot([point["seconds"] for point in run["curve"]], quality, **style)
    by_step.set(xlabel="optimiser step", ylabel="PSNR of test images (dB)")
    by_time.set(xlabel="seconds of training")
    _finish(figure, [by_step, by_time])
    return figure


def residual_figure(results: Results) -> Figure:
    """Return the fixed-point residual of the test images against iterations: the median, and the largest as a shade."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for number, (method, runs) in enumerate(results.items()):
        median, largest = (np.array(runs[0]["residuals"][name], dtype=float) for name in ("median", "largest"))
        steps = np.arange(1, median.size + 1)
        axis.plot(steps, median, label=method, color=f"C{number % 10}", linewidth=1.2)
        axis.fill_between(steps, median, largest, color=f"C{number % 10}", alpha=0.15, linewidth=0)
    axis.set(xlabel="iteration", ylabel="||T(x) - x|| / ||T(x)||", yscale="log")
    _finish(figure, [axis])
    return figure


def proximal_figure(diagnostics: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return the measurements that bear on the claim of a proximal map of an invariant prior, side by side."""
    shown: list[tuple[str, list[str]]] = [
        ("asymmetry of J (0: symmetric)", ["proximal", "asymmetry"]),
        ("smallest eigenvalue of sym(J) (>= 0)", ["proximal", "spectrum", "smallest"]),
        ("norm of J (<= 1)", ["proximal", "spectrum", "norm"]),
        ("loop integral (0: gradient field)", ["proximal", "cycles", "integral"]),
        ("equivariance error of D, rotations", ["denoiser_equivariance", "rotations", "error"]),
        ("equivariance gap of f, rotations", ["equivariance_gap", "rotations", "error"]),
    ]
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (title, path) in zip(axes.flat, shown, strict=True):
        found = {method: _at(entry, path) for method, entry in diagnostics.items()}
        present = {method: value for method, value in found.items() if value is not None and value["mean"] is not None}
        for place, (method, value) in enumerate(present.items()):
            axis.plot([place], [value["mean"]], "o", color=f"C{list(diagnostics).index(method)}")
            if value["low"] is not None:
                axis.plot([place, place], [value["low"], value["high"]], color=f"C{list(diagnostics).index(method)}")
        axis.set_xticks(range(len(present)), list(present), rotation=20, fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.15)
        axis.grid(alpha=0.3)
    return figure


def gradient_figure(diagnostics: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return the cosine of each backward mode's gradient to the exact one, before and after training."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for number, (method, label) in enumerate((("pnp", "before training"), ("deq-ei-id", "after training"))):
        modes = diagnostics[method]["gradients"] if method in diagnostics else {}
        for place, (_, entry) in enumerate(modes.items()):
            value = entry["cosine"]
            spread = [[value["mean"] - value["least"]], [value["greatest"] - value["mean"]]]
            axis.errorbar(
                [place + 0.1 * number],
                [value["mean"]],
                yerr=spread,
                fmt="o",
                color=f"C{number}",
                label=label if place == 0 else None,
            )
        if modes:
            axis.set_xticks(range(len(modes)), list(modes))
    axis.set(ylabel="cosine to the exact gradient", ylim=(None, 1.05))
    _finish(figure, [axis])
    return figure


def _at(entry: Mapping[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        if name not in entry:
            return None
        entry = entry[name]
    return entry


def _finish(figure: Figure, axes: Sequence[Any]) -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
