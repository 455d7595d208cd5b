"""Memory that is predicted for reconstructions, against what they take."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from equipoise_engine.acquisition import CtAcquisition, DataState, MriAcquisition
from equipoise_engine.geometry import Cartesian, ConeBeam, FanBeam, NonCartesian, ParallelBeam
from equipoise_engine.methods import run, with_defaults
from equipoise_engine.planning import plan
from equipoise_engine.protocol import ReconstructSettings

CPU = torch.device("cpu")


def tomography(views: int, rows: int, columns: int, *, stored: np.ndarray | None = None) -> CtAcquisition:
    """Return a parallel-beam scan of a disc, or one with other numbers."""
    offset = np.arange(columns) - (columns - 1) / 2
    disc = np.sqrt(np.maximum((0.4 * columns) ** 2 - offset**2, 0.0)).astype(np.float32) / columns
    return CtAcquisition(
        path=Path("made.h5"),
        format="made",
        state=DataState.ATTENUATION,
        projections=np.broadcast_to(disc, (views, rows, columns)) if stored is None else stored,
        geometry=ParallelBeam(np.arange(views) * np.pi / views, centre_px=(columns - 1) / 2),
    )


def resonance(size: int, coils: int, slices: int) -> MriAcquisition:
    """Return k-space of a disc that coils around it see."""
    axis = np.arange(size) - size // 2
    y, x = axis[:, None] / size, axis[None, :] / size
    angle = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    seen = np.exp(-4 * ((y - 0.4 * np.cos(angle)) ** 2 + (x - 0.4 * np.sin(angle)) ** 2)) * (np.hypot(y, x) < 0.35)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(seen, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    noise = np.random.default_rng(0).normal(scale=1e-3, size=kspace.shape)
    geometry = Cartesian(np.ones((size, size), dtype=bool), (float(size), float(size)))
    return MriAcquisition(
        path=Path("made.h5"),
        format="made",
        kspace=np.stack([(kspace + noise).astype(np.complex64)] * slices),
        geometry=geometry,
    )


def test_the_volume_and_a_batch_are_counted() -> None:
    small, large = plan(tomography(90, 8, 128), CPU), plan(tomography(90, 80, 128), CPU)
    assert small.disk_bytes == 4 * 8 * 128**2
    assert large.disk_bytes == 10 * small.disk_bytes
    # only eight slices are worked at together
    assert large.host_bytes - small.host_bytes == 72 * 4 * 128**2
    assert small.device_bytes == small.device_free == 0
    assert small.host_free == pytest.approx(psutil.virtual_memory().available, rel=0.1)
    assert small.text.startswith("everything fits; host memory binds: ")


def test_more_of_anything_takes_more() -> None:
    scan = tomography(90, 8, 128)
    usual = plan(scan, CPU).host_bytes
    assert plan(tomography(180, 8, 128), CPU).host_bytes > usual
    assert plan(replace(scan, geometry=replace(scan.geometry, truncated=True)), CPU).host_bytes > usual
    turn = ParallelBeam(np.arange(90) * 2 * np.pi / 90, centre_px=20.0)
    assert plan(replace(scan, geometry=turn), CPU).disk_bytes > plan(scan, CPU).disk_bytes
    for unknown in (None, -20.0):
        assert plan(replace(scan, geometry=replace(scan.geometry, centre_px=unknown)), CPU).host_bytes == usual
    fan = FanBeam(scan.geometry.angle_rad, 300.0, 450.0, 1.5, 63.5)
    assert plan(replace(scan, geometry=fan), CPU).host_bytes == usual


def test_all_slices_of_a_cone_beam_are_made_at_once() -> None:
    scan = tomography(90, 64, 64)
    cone = ConeBeam(scan.geometry.angle_rad, 300.0, 450.0, 1.5, 1.5, 31.5, 31.5)
    assert plan(replace(scan, geometry=cone), CPU).host_bytes > 3 * plan(scan, CPU).host_bytes
    assert plan(replace(scan, geometry=cone), CPU).disk_bytes == 4 * 64**3


def test_k_space_on_a_grid_and_along_readouts() -> None:
    scan = resonance(32, 4, 2)
    cartesian = plan(scan, CPU)
    assert cartesian.disk_bytes == 4 * 2 * 32**2
    trajectory = np.zeros((20, 64, 2))
    spokes = MriAcquisition(
        path=Path("made.h5"),
        format="made",
        kspace=np.zeros((2, 4, 20, 64), dtype=np.complex64),
        geometry=NonCartesian(trajectory, (48, 40), (48.0, 40.0)),
    )
    assert plan(spokes, CPU).disk_bytes == 4 * 2 * 48 * 40
    assert plan(spokes, CPU).host_bytes > cartesian.host_bytes


def test_what_does_not_fit_is_said_so() -> None:
    # a whole detector of one value, which takes no memory
    wide = np.broadcast_to(np.float32(0), (2000, 30000, 20000))
    found = plan(tomography(2000, 30000, 20000, stored=wide), CPU)
    assert found.host_bytes > found.host_free
    assert found.text.startswith("it will not fit: host memory binds, ")
    assert " GB free" in found.text


CASES: dict[str, Callable[[], tuple[CtAcquisition | MriAcquisition, str]]] = {
    "slices": lambda: (tomography(256, 8, 256), "tv"),
    "few views": lambda: (tomography(100, 8, 512), "tv"),
    "coils": lambda: (resonance(128, 8, 8), "sense"),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_runs_take_about_what_was_predicted(case: str) -> None:
    # in a process of its own, whose memory nothing else has used before; the first may compile, which takes some too
    for _ in range(2):
        done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    taken, predicted = (int(word) for word in done.stdout.split())
    assert 0.75 * predicted < taken < 1.2 * predicted


def measured_run(case: str) -> tuple[int, int]:
    """Return by how much a run makes this process grow, and what was predicted, in bytes."""
    scan, method = CASES[case]()
    small = tomography(24, 2, 32) if isinstance(scan, CtAcquisition) else resonance(32, 2, 2)
    growth_of_run(small, method)
    return growth_of_run(scan, method), plan(scan, CPU).host_bytes


def growth_of_run(scan: CtAcquisition | MriAcquisition, method: str) -> int:
    """Return by how much this process grows at most while it reconstructs, in bytes."""
    asked = ReconstructSettings(method=method, iterations=2, tolerance=1e-9)
    settings = with_defaults(asked, scan)[1]
    process, done = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    run(scan, slice(0, scan.slices), settings, None, CPU)
    done.set()
    watching.join()
    return int(max(seen) - seen[0])


if __name__ == "__main__":
    sys.stdout.write("{} {}".format(*measured_run(sys.argv[1])))
