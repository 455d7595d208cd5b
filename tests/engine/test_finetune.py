"""Training from measurements: it lowers its loss, stops when asked, and continues bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.finetune import TrainSettings, draw_from, finetune, training_step
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.losses import recorrupt
from equipoise_engine.measured import Measured
from equipoise_engine.model import Architecture, EquilibriumModel
from equipoise_engine.networks import expansion
from equipoise_engine.phantoms import random_images
from equipoise_engine.pretrain import PretrainSettings, pretrain
from equipoise_engine.progress import Cancelled, Progress
from equipoise_engine.weights import Checkpoint, read_checkpoint, write_checkpoint
from equipoise_resources import weights_path

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="start")
def _start() -> Checkpoint:
    return read_checkpoint(weights_path("ct"))


@pytest.fixture(scope="module", name="scan")
def _scan() -> Measured:
    geometry = ParallelBeam(np.linspace(0, np.pi, 10, endpoint=False), 1.0, 15.5)
    physics = TomographyPhysics(geometry, 32)
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


def test_steps_on_the_same_draw_lower_its_loss(start: Checkpoint, scan: Measured) -> None:
    model = start.model()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(8):
        # the same slices, angles and noise each time, so that only the weights change
        generator = torch.Generator().manual_seed(4)
        report = training_step(model, optimiser, draw_from((scan,), 2)(generator), TrainSettings(), generator)
        losses.append(report.terms[0][1])
    assert losses[-1] < 0.95 * losses[0]


def test_pretraining_is_deterministic_and_changes_every_part_of_the_network() -> None:
    settings = PretrainSettings("mri", side=16, denoise_steps=4, equivariant_steps=1, equivariant_batch=1)
    first, second = (
        pretrain(settings, manifest={"made by": "a test"}, device=CPU, keep=lambda checkpoint: None) for _ in range(2)
    )
    assert same(first, second)
    assert first.manifest["made by"] == "a test"
    assert not first.optimiser
    torch.manual_seed(settings.seed)
    untrained = EquilibriumModel(Architecture(image_channels=2)).state_dict()
    assert all(not torch.equal(value, untrained[name]) for name, value in first.weights.items())


def test_recorrupted_measurements_have_independent_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, drawn = (0.3 * torch.randn((1, 400, 400), generator=generator) for _ in range(2))
    one, other = recorrupt(5.0 + noise, drawn)
    correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.01
    assert float(other.mean()) == pytest.approx(5.0, abs=0.01)


def test_expansion_is_the_largest_singular_value_of_a_linear_map() -> None:
    class Linear(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.linspace(0.2, 1.7, 64).reshape(1, 1, 8, 8)

    image = torch.ones((2, 1, 8, 8))
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    gain, _ = expansion(Linear(), image, direction, steps=60)
    torch.testing.assert_close(gain, torch.full((2,), 1.7), rtol=1e-2, atol=0)


def test_the_same_seed_gives_the_same_weights(start: Checkpoint, scan: Measured) -> None:
    assert same(run(start, scan, 4), run(start, scan, 4))


@pytest.mark.long
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


def test_the_shipped_denoiser_reduces_noise_and_scales_with_the_image(start: Checkpoint) -> None:
    model = start.model()
    clean = random_images(4, 64, torch.Generator().manual_seed(9))
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        better = model.denoise(noisy)
        torch.testing.assert_close(model.denoise(7 * noisy), 7 * better, rtol=1e-3, atol=1e-4)
    assert float((better - clean).norm()) < 0.5 * float((noisy - clean).norm())


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
