"""Training from measurements: it lowers its loss, stops when asked, and continues bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise_engine.acquisition import ParallelBeam
from equipoise_engine.ct import ParallelBeamPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.finetune import TrainSettings, draw_from, finetune
from equipoise_engine.losses import equivariance, measurement_consistency
from equipoise_engine.measured import Measured
from equipoise_engine.model import Architecture, EquilibriumModel
from equipoise_engine.operators import Physics
from equipoise_engine.phantoms import random_images
from equipoise_engine.pretrain import PretrainSettings, pretrain
from equipoise_engine.progress import Cancelled, Progress
from equipoise_engine.weights import Checkpoint, read_checkpoint, write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="start")
def _start() -> Checkpoint:
    """A small denoiser, trained for a few seconds on generated images."""
    settings = PretrainSettings("ct", side=32, denoise_steps=60, equivariant_steps=0, denoise_batch=4)
    return pretrain(settings, manifest={"made by": "a test"}, device=CPU, keep=lambda checkpoint: None)


@pytest.fixture(scope="module", name="scan")
def _scan() -> Measured:
    geometry = ParallelBeam(np.linspace(0, np.pi, 10, endpoint=False), 1.0, 15.5)
    physics = ParallelBeamPhysics(geometry, 32)
    images = random_images(6, 32, torch.Generator().manual_seed(5))
    return Measured(physics(images), physics, math.pi / 10)


def run(start: Checkpoint, scan: Measured, steps: int, **rest: object) -> Checkpoint:
    settings = TrainSettings(steps=steps, learning_rate=1e-3, seed=3)
    keep = rest.pop("keep", lambda checkpoint: None)
    watch = rest.pop("watch", lambda progress: None)
    return finetune(
        start,
        draw_from((scan,), 2),
        settings,
        manifest={"a": 1},
        device=CPU,
        keep=keep,
        watch=watch,  # type: ignore[arg-type]
    )


def same(one: Checkpoint, other: Checkpoint) -> bool:
    tensors = [(c.weights | {f"o/{k}": v for k, v in c.optimiser.items()}) for c in (one, other)]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(v, tensors[1][k]) for k, v in tensors[0].items())


def test_the_loss_falls(start: Checkpoint, scan: Measured) -> None:
    done = run(start, scan, 25)
    assert len(done.manifest["losses"]) == 25

    def held_out(checkpoint: Checkpoint) -> float:
        """The loss of the whole scan at angles that are the same for both."""
        model = checkpoint.model()

        def reconstruct(y: Tensor, physics: Physics) -> Tensor:
            value: Tensor = model(y, physics)[0]
            return value

        angles = torch.linspace(0.2, 6.0, scan.y.shape[0])
        with torch.no_grad():
            x_hat = reconstruct(scan.y, scan.physics)
            consistent = measurement_consistency(x_hat, scan.y, scan.physics)
            return float((consistent + equivariance(x_hat, scan.physics, reconstruct, angles=angles)).mean())

    assert held_out(done) < 0.9 * held_out(start)


def test_the_same_seed_gives_the_same_weights(start: Checkpoint, scan: Measured) -> None:
    assert same(run(start, scan, 4), run(start, scan, 4))


@pytest.mark.parametrize(("stage", "step"), [("train", 3), ("backward", 2), ("solve", 4)])
def test_interrupted_at_any_place_it_continues_bit_for_bit(
    start: Checkpoint, scan: Measured, tmp_path: Path, stage: str, step: int
) -> None:
    whole = run(start, scan, 6)
    path = tmp_path / "model.safetensors"
    seen = 0

    def watch(progress: Progress) -> None:
        nonlocal seen
        seen += progress.stage == "train"
        if (stage == "train" or seen == 2) and progress.stage == stage and progress.step == step:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(start, scan, 6, keep=lambda checkpoint: write_checkpoint(checkpoint, path), watch=watch)
    kept = read_checkpoint(path)
    assert kept.step == (3 if stage == "train" else 2)
    resumed = run(kept, scan, 6)
    assert same(resumed, whole)
    assert resumed.manifest["losses"] == whole.manifest["losses"]


def test_a_time_limit_ends_it(start: Checkpoint, scan: Measured) -> None:
    settings = TrainSettings(seconds=0.5)
    done = finetune(start, draw_from((scan,), 1), settings, manifest={}, device=CPU, keep=lambda checkpoint: None)
    assert done.step >= 1


def test_nothing_to_train_is_refused(start: Checkpoint, scan: Measured) -> None:
    with pytest.raises(BadInput, match="nothing to train"):
        run(start, scan, 0)


def test_the_untrained_network_is_the_identity() -> None:
    image = torch.rand((1, 18, 21), generator=torch.Generator().manual_seed(0))
    assert torch.equal(EquilibriumModel(Architecture(1)).denoise(image), image)


def test_denoising_reduces_noise_and_scales_with_the_image(start: Checkpoint) -> None:
    model = start.model()
    clean = random_images(4, 32, torch.Generator().manual_seed(9))
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        better = model.denoise(noisy)
        torch.testing.assert_close(model.denoise(7 * noisy), 7 * better, rtol=1e-4, atol=1e-5)
    assert float((better - clean).norm()) < 0.8 * float((noisy - clean).norm())


def test_weights_survive_the_disk_with_their_manifest(start: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_checkpoint(start, path)
    again = read_checkpoint(path)
    assert same(again, start)
    assert again.manifest == json.loads(json.dumps(start.manifest))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("spoil", ["cut", "text", "missing", "other"])
def test_a_file_that_holds_no_weights_is_refused_by_name(start: Checkpoint, tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "weights.safetensors"
    write_checkpoint(start, path)
    match spoil:
        case "cut":
            path.write_bytes(path.read_bytes()[:-100])
        case "text":
            path.write_text("not weights")
        case "missing":
            path.unlink()
        case "other":
            from safetensors.torch import save_file

            save_file({"a": torch.zeros(2)}, str(path))
    with pytest.raises(BadInput, match=r"weights\.safetensors"):
        read_checkpoint(path)


def test_an_unwritable_target_leaves_the_old_file(start: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write the weights"):
        write_checkpoint(start, tmp_path / "nowhere" / "weights.safetensors")
