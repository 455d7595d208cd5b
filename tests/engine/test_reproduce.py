"""The comparison by one command: the data, the contenders, the cost of a step, and a tiny run from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.metrics import psnr
from equipoise_engine.reproduce.command import Comparison, read_result, run
from equipoise_engine.reproduce.contenders import (
    STRENGTHS,
    build_model,
    direct_image,
    reconstruct,
    run_classical,
    run_plug_and_play,
    train_settings,
)
from equipoise_engine.reproduce.part import peak_memory, run_part, train
from equipoise_engine.reproduce.presets import CONTROL, LEARNED, METHODS, PRESETS, Part, plan
from equipoise_engine.reproduce.problem import Problem, build, random_lines

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute as a part does: images this small are slower with more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(name="problems", scope="module")
def _problems() -> dict[str, Problem]:
    return {modality: build(PRESETS[modality, "tiny"], CPU) for modality in ("ct", "mri")}


@pytest.mark.parametrize("modality", ["ct", "mri"])
def test_the_data_are_fixed_and_the_test_is_of_other_objects(modality: str, problems: dict[str, Problem]) -> None:
    preset, problem = PRESETS[modality, "tiny"], problems[modality]
    again = build(preset, CPU)
    assert torch.equal(problem.training.y, again.training.y)
    assert torch.equal(problem.truth, again.truth)
    assert problem.training.y.shape[0] == preset.training_images
    assert problem.truth.shape == (preset.test_images, preset.side, preset.side)
    seen = problem.training.truth
    assert seen is not None
    assert min(float((one - other).abs().max()) for one in seen for other in problem.truth) > 0.1
    other = build(replace(preset, data_seed=1), CPU)
    assert not torch.equal(problem.training.y, other.training.y)


@pytest.mark.parametrize("modality", ["ct", "mri"])
def test_the_measurements_are_those_of_the_truth_up_to_noise(modality: str, problems: dict[str, Problem]) -> None:
    problem = problems[modality]
    residual = problem.test.physics.forward(problem.truth) - problem.test.y
    relative = float(residual.abs().square().mean().sqrt() / problem.test.y.abs().max())
    # CT is measured on a finer grid, so beside the noise there is the error of the coarse one
    assert 0 < relative < (0.05 if modality == "ct" else 0.01)


def test_the_sampled_lines_are_as_many_as_asked() -> None:
    mask = random_lines(64, 4, 6, torch.Generator().manual_seed(0))
    assert int(mask[:, 0].sum()) == 16
    assert bool(mask[29:35].all())
    assert torch.equal(mask, mask[:, :1].expand(64, 64))


def test_the_direct_image_is_that_of_filtered_back_projection_and_differentiable() -> None:
    preset = replace(PRESETS["ct", "tiny"], side=48, views=40, noise=0.0, training_images=1)
    problem = build(preset, CPU)
    physics = problem.test.physics
    assert isinstance(physics, TomographyPhysics)
    y = problem.test.y.double().requires_grad_()
    image = direct_image(physics, y)
    with torch.no_grad():
        fbp = physics.fbp(y)
        assert float((image - fbp).norm() / fbp.norm()) < 0.1
    probe = torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((image * probe).sum(), y)
    # the image is linear in y, so <gradient, y> is <probe, image>
    assert float((gradient * y).sum().detach()) == pytest.approx(float((image * probe).sum().detach()), rel=1e-9)


def test_all_learned_methods_have_the_same_parameters() -> None:
    preset = PRESETS["mri", "tiny"]
    shapes = [{name: p.shape for name, p in build_model(method, preset).named_parameters()} for method in LEARNED]
    assert all(one == shapes[0] for one in shapes)


@pytest.mark.parametrize(
    ("modality", "method"),
    [*(("ct", method) for method in (*LEARNED, CONTROL)), ("mri", "deq-ei-id"), ("mri", "deq-es-id")],
)
def test_only_the_supervised_method_reads_true_images(method: str, modality: str, problems: dict[str, Problem]) -> None:
    preset, problem = PRESETS[modality, "tiny"], problems[modality]
    assert problem.training.truth is not None
    spoilt = replace(problem, training=replace(problem.training, truth=-problem.training.truth))
    trained: list[dict[str, Tensor]] = []
    for data in (problem, spoilt):
        torch.manual_seed(0)
        model = build_model(method, preset)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        done = train(model, data, Part(preset, method, 0, True, "cpu"), lambda line: None)
        assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
        trained.append(model.state_dict())
        assert [point["step"] for point in done["curve"]] == [0, 1, 2]
        assert done["seconds_per_step"] > 0
        assert done["peak_mib"] > 0
        assert done["skipped_steps"] == 0
    same = all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())
    assert same == (method != "deq-sup-id")


def test_unrolled_takes_as_many_steps_in_the_test_as_in_training(problems: dict[str, Problem]) -> None:
    preset = PRESETS["ct", "tiny"]
    model = build_model("ei-unrolled", preset)
    backward = train_settings("ei-unrolled", preset).backward
    tested = reconstruct(model, problems["ct"].test, backward, tolerance=1e-4, max_steps=50)
    assert tested.residuals is not None
    assert tested.residuals.shape[0] == preset.unrolled_steps


@pytest.mark.parametrize("modality", ["ct", "mri"])
def test_the_oracle_takes_a_strength_that_helps(modality: str, problems: dict[str, Problem]) -> None:
    preset, problem = PRESETS[modality, "tiny"], problems[modality]
    direct, regularised = METHODS[modality][:2]

    def quality(images: Tensor) -> float:
        return float(np.mean(psnr(images, problem.truth, problem.data_range)))

    best = run_classical(regularised, problem, preset)
    assert best.chosen["strength"] in STRENGTHS
    assert quality(best.images) > quality(run_classical(direct, problem, preset).images)
    # without training D is the identity, and plug-and-play the classical iteration for the data alone
    played = run_plug_and_play(build_model("deq-ei-id", preset), problem, preset)
    assert set(played.chosen) == {"map", "weight", "tolerance"}
    assert quality(played.images) > quality(run_classical(direct, problem, preset).images) - 1


def test_the_peak_is_what_was_held_at_once() -> None:
    mebi = 2**20

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(mebi)

    def at_once() -> list[Tensor]:
        return [torch.ones(mebi) for _ in range(3)]

    assert peak_memory(one_after_the_other, CPU) == pytest.approx(4 * mebi, rel=0.01)
    assert peak_memory(at_once, CPU) == pytest.approx(12 * mebi, rel=0.01)


def test_a_part_depends_on_its_settings_and_nothing_else() -> None:
    preset = PRESETS["ct", "tiny"]
    part = Part(preset, "deq-ei-id", 0, False, "cpu")
    assert part.settings == Part(replace(preset), "deq-ei-id", 0, False, "cpu").settings
    others = {replace(part, seed=1), replace(part, preset=replace(preset, steps=3)), replace(part, from_scratch=True)}
    assert len({part.settings, *(other.settings for other in others)}) == 4


def test_the_plan_has_what_is_needed_and_the_denoiser_first() -> None:
    preset = PRESETS["mri", "quick"]
    everything = plan(preset, METHODS["mri"], 2, from_scratch=False, device="cpu")
    names = [part.name for part in everything]
    assert names[0] == "denoiser-0"
    assert len(set(names)) == len(names) == 1 + 2 * (len(LEARNED) + 1) + 3
    alone = plan(preset, ["zerofilled"], 2, from_scratch=False, device="cpu")
    assert [part.name for part in alone] == ["zerofilled-0"]
    scratch = plan(preset, ["deq-sup-id"], 1, from_scratch=True, device="cpu")
    assert [part.name for part in scratch] == ["deq-sup-id-0"]


def test_wrong_wishes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'huge'"):
        Comparison("ct", "huge", tmp_path, "cpu")
    with pytest.raises(BadInput, match="'wavelet'"):
        Comparison("ct", "tiny", tmp_path, "cpu", methods=("wavelet",))
    with pytest.raises(BadInput, match="0 seeds"):
        Comparison("ct", "tiny", tmp_path, "cpu", seeds=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot make"):
        run(Comparison("ct", "tiny", tmp_path / "file", "cpu"), lambda line: None)


@pytest.mark.long
def test_a_run_goes_on_with_what_is_missing_and_writes_the_report(tmp_path: Path) -> None:
    wanted = Comparison("mri", "tiny", tmp_path, "cpu", jobs=2, methods=("zerofilled", "deq-ei-id"))
    parts = tmp_path / "parts"
    lines: list[str] = []
    for part in wanted.parts:
        if part.method != "zerofilled":
            run_part(part, parts, lines.append)
    assert any("step 2 of 2" in line and "PSNR" in line for line in lines)
    kept = {
        part: (parts / part.name / "result.json").read_bytes()
        for part in wanted.parts
        if part.seed == 0 and part.method != "zerofilled"
    }
    # other settings than those of the run: this part has to run again
    (parts / "zerofilled-0").mkdir()
    (parts / "zerofilled-0" / "result.json").write_text(json.dumps({"settings": "of another run"}))

    told: list[str] = []
    results = run(wanted, told.append)

    assert [line for line in told if "complete already" in line] == [f"{part.name}: complete already" for part in kept]
    assert all((parts / part.name / "result.json").read_bytes() == content for part, content in kept.items())
    assert [row["method"] for row in results["rows"]] == ["zerofilled", "deq-ei-id"]
    columns = {"method", "psnr_mean", "psnr_std", "ssim_mean", "nmse_mean", "seconds_per_step", "peak_mib"}
    assert all(set(row) == columns for row in results["rows"])
    assert results["rows"][0]["seconds_per_step"] is None
    direct = read_result(parts, wanted.part("zerofilled", 0))
    assert direct is not None
    assert results["rows"][0]["psnr_mean"] == pytest.approx(np.mean(direct["psnr"]))
    assert set(results["diagnostics"]) == {"deq-ei-id", CONTROL}
    assert results["diagnostics"]["deq-ei-id"]["gradients"]["jacobian-free"]["cosine"]["mean"] <= 1
    assert json.loads((tmp_path / "results.json").read_text()) == results
    table = (tmp_path / "table.md").read_text()
    assert f"| deq-ei-id | {results['rows'][1]['psnr_mean']:.2f} ±" in table
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == len(list((tmp_path / "figures").glob("*.png"))) == 5
    assert "same denoiser" in page


def test_stopping_a_run_ends_its_parts(tmp_path: Path) -> None:
    # the first of these is done at once, the other searches for its strength meanwhile
    wanted = Comparison("mri", "quick", tmp_path, "cpu", jobs=2, methods=("zerofilled", "wavelet"))
    running: list[psutil.Process] = []
    others = psutil.Process().children()

    def stop(line: str) -> None:
        running.extend(process for process in psutil.Process().children() if process not in others)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(wanted, stop)
    assert running
    assert not any(process.is_running() for process in running)
