"""The jobs as plain functions: ranges, batches, contrast, provenance, empty slices, and what is refused early."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from equipoise_engine import jobs, protocol
from equipoise_engine.acquisition import Acquisition, CtAcquisition, DataState, MriAcquisition, content_hash
from equipoise_engine.errors import BadInput
from equipoise_engine.facts import scan_facts
from equipoise_engine.geometry import Cartesian, ParallelBeam
from equipoise_engine.measured import Undersampling, measure
from equipoise_engine.methods import methods_for, with_defaults
from equipoise_engine.model import Architecture, EquilibriumModel
from equipoise_engine.opening import open_scan, settled
from equipoise_engine.progress import Cancelled, Progress, unwatched
from equipoise_engine.protocol import FineTuneSettings, ReconstructSettings
from equipoise_engine.recipe import Known, Recipe, Selection, Span
from equipoise_engine.volume import Iterates, Store, Volume
from equipoise_engine.weights import Checkpoint, read_checkpoint, write_checkpoint
from equipoise_resources import sample_path

CPU = torch.device("cpu")


def ct_scan(slices: int = 3, *, side: int = 21, views: int = 12, empty: tuple[int, ...] = ()) -> CtAcquisition:
    """A disc off the axis, seen by a detector of `side` columns; the `empty` slices hold nothing."""
    angles = np.linspace(0, np.pi, views, endpoint=False)
    columns = np.arange(side) - (side - 1) / 2
    apart = columns[None, :] - 2.0 * np.cos(angles)[:, None]
    chords = 0.2 * np.sqrt(np.maximum(0.0, 5.0**2 - apart**2))
    projections = np.repeat(chords[:, None, :], slices, axis=1).astype(np.float32)
    projections[:, list(empty), :] = 0
    return CtAcquisition(
        path=Path("disc.nxs"),
        format="made here",
        state=DataState.ATTENUATION,
        projections=projections,
        geometry=ParallelBeam(angles, 0.5, (side - 1) / 2, calibrated=True),
    )


def mri_scan(slices: int = 2, *, shape: tuple[int, int] = (17, 26), empty: tuple[int, ...] = ()) -> MriAcquisition:
    """Two coils over a box in a matrix that is odd one way and not square; the `empty` slices hold nothing."""
    rows, columns = shape
    image = np.zeros(shape)
    image[5:12, 7:19] = 1.0
    maps = np.stack([np.linspace(0.2, 1, columns), np.linspace(1, 0.2, columns) * 1j])[:, None, :]
    coils = image[None] * maps
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(coils, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    whole = np.repeat(kspace[None], slices, axis=0).astype(np.complex64)
    whole[list(empty)] = 0
    return MriAcquisition(
        path=Path("box.h5"),
        format="made here",
        kspace=whole,
        geometry=Cartesian(np.ones((rows, columns), dtype=np.bool_), (170.0, 260.0), 4.0, calibrated=True),
    )


def weights(channels: int, folder: Path) -> Path:
    """Weights of a small network that does something: its last layer is not zero, as it is at first."""
    torch.manual_seed(3)
    architecture = Architecture(channels, (4, 4, 4))
    model = EquilibriumModel(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    path = folder / f"small{channels}.safetensors"
    state = {name: value.detach() for name, value in model.state_dict().items()}
    write_checkpoint(Checkpoint(architecture, state, {}, torch.empty(0, dtype=torch.uint8), 0, {}), path)
    return path


def reconstruct(
    scan: Acquisition, settings: ReconstructSettings, *, preview: int = 0, watch: Callable[[Progress], None] = unwatched
) -> tuple[Volume, protocol.ResultFacts, list[protocol.Event], Store]:
    store, events = Store(), list[protocol.Event]()
    store.put_scan("scan", scan)
    request = protocol.Reconstruct(scan="scan", settings=settings, preview_slice=preview)
    jobs.reconstruct(request, store, events.append, watch, CPU)
    done = events[-1]
    assert isinstance(done, protocol.Reconstructed)
    return store.volume(done.facts.result), done.facts, events, store


def adapt(
    scan: Acquisition, settings: FineTuneSettings, out: Path, watch: Callable[[Progress], None] = unwatched
) -> tuple[Checkpoint, list[protocol.Event]]:
    events: list[protocol.Event] = []
    return jobs.adapt((scan,), settings, out, events.append, watch, CPU), events


# --- small functions -------------------------------------------------------------------------------


def test_contrast_leaves_out_what_is_not_finite_and_never_is_empty() -> None:
    ramp = np.arange(1001, dtype=np.float32).reshape(7, 143)
    low, high = jobs.contrast(ramp)
    assert (low, high) == pytest.approx((10.0, 998.0))
    spoilt = ramp.copy()
    spoilt[0, :3] = np.nan, np.inf, -np.inf
    low, high = jobs.contrast(spoilt)
    assert 10 <= low < 15
    assert 997 < high <= 1000
    assert jobs.contrast(np.full((4, 4), np.nan, dtype=np.float32)) == (0.0, 1.0)
    assert jobs.contrast(np.full((4, 4), 3.0, dtype=np.float32)) == (3.0, 4.0)
    assert jobs.contrast(np.zeros((0, 4), dtype=np.float32)) == (0.0, 1.0)


def test_contrast_of_a_large_volume_sees_all_its_columns() -> None:
    pixels = np.zeros((1_000_000, 4), dtype=np.float32)
    pixels[:, 1:] = 5.0
    # one sample in four: the first column alone, if the stride were not kept apart from the width
    assert jobs.contrast(pixels) == (0.0, 5.0)


def test_the_slices_asked_for_must_lie_in_the_scan() -> None:
    scan = ct_scan(3)
    assert jobs.slice_range(ReconstructSettings(method="fbp"), scan) == (0, 3)
    assert jobs.slice_range(ReconstructSettings(method="fbp", slices=(1, 3)), scan) == (1, 3)
    for wrong in ((0, 4), (-1, 2), (2, 2), (2, 1)):
        with pytest.raises(BadInput, match=r"do not lie in 0:3 of disc\.nxs"):
            jobs.slice_range(ReconstructSettings(method="fbp", slices=wrong), scan)


@pytest.mark.parametrize(("first", "last", "preview"), [(0, 1, 0), (0, 40, 0), (3, 30, 11), (0, 17, 16)])
def test_batches_begin_with_the_preview_and_cover_each_slice_once(first: int, last: int, preview: int) -> None:
    runs = jobs._batches(first, last, preview)
    assert runs[0] == (preview, preview + 1)
    assert all(0 < end - start <= jobs.BATCH for start, end in runs)
    assert sorted(index for start, end in runs for index in range(start, end)) == list(range(first, last))


def test_voxels_are_as_large_as_the_scan_says() -> None:
    assert jobs.voxel_size(ct_scan(), (21, 21)) == (0.5, 0.5, 0.5)
    # every second row, two of which are put together: four rows of the file apart
    part = Recipe(known=Known(centre_px=10.0), selection=Selection(rows=Span(step=2), bin=2), steps=())
    assert jobs.voxel_size(settled(ct_scan(8), part, unwatched), (10, 10)) == (2.0, 1.0, 1.0)
    # a single row is not binned
    part = Recipe(known=Known(centre_px=10.0), selection=Selection(rows=Span(last=1), bin=2), steps=())
    assert jobs.voxel_size(settled(ct_scan(8), part, unwatched), (10, 10)) == (0.5, 1.0, 1.0)
    assert jobs.voxel_size(mri_scan(), (17, 26)) == (4.0, 10.0, 10.0)
    # an image that was cropped along x has smaller pixels only if its field of view stayed, which it says itself
    assert jobs.voxel_size(mri_scan(), (34, 26)) == (4.0, 5.0, 10.0)


def test_settings_out_of_range_are_refused_and_zero_takes_the_default() -> None:
    scan = ct_scan()
    method, filled = with_defaults(ReconstructSettings(method="tv", iterations=7), scan)
    assert (filled.iterations, filled.tolerance, filled.strength) == (7, method.tolerance, method.strength)
    for wrong in (math.nan, math.inf, -1.0):
        with pytest.raises(BadInput, match="tolerance"):
            with_defaults(ReconstructSettings(method="tv", tolerance=wrong), scan)
    with pytest.raises(BadInput, match=r"not one for a CT scan"):
        with_defaults(ReconstructSettings(method="sense"), scan)


# --- the store -------------------------------------------------------------------------------------


def picture(value: float) -> NDArray[np.float32]:
    return np.full((2, 3), value, dtype=np.float32)


def test_iterates_are_thinned_over_the_whole_run() -> None:
    kept = Iterates(slice_index=4, limit=8)
    for step in range(1, 101):
        kept.add(step, picture(step))
        assert len(kept.steps) <= 8
        assert kept.steps == sorted(set(kept.steps))
    gaps = np.diff([0, *kept.steps])
    assert gaps.min() == gaps.max() == kept.stride
    assert kept.steps[-1] > 100 - kept.stride
    for asked in (1, 37, 100, 10_000):
        step, image = kept.at(asked)
        assert abs(step - asked) == min(abs(s - asked) for s in kept.steps)
        np.testing.assert_array_equal(image, picture(step))


def test_iterates_of_large_images_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipoise_engine.volume.MAX_ITERATE_BYTES", 12 * picture(0).nbytes)
    kept = Iterates(slice_index=0)
    for step in range(1, 200):
        kept.add(step, picture(step))
        assert len(kept.steps) <= 12


def test_what_is_not_in_the_store_is_said_so_and_dropping_a_run_does_not_break_it() -> None:
    store = Store()
    for ask in (store.scan, store.volume, lambda key: store.iterate(key, 1)):
        with pytest.raises(BadInput, match=r"the engine holds no .* run-9"):
            ask("run-9")
    store.put_iterates("run-1", Iterates(2))
    with pytest.raises(BadInput, match="no iterates yet"):
        store.iterate("run-1", 1)
    store.add_iterate("run-1", 1, picture(1))
    assert store.iterate_slice("run-1") == 2
    store.forget("run-1")
    store.add_iterate("run-1", 2, picture(2))
    assert store.iterate_slice("run-1") is None
    assert store.new_id("run") != store.new_id("run")


# --- reconstruction --------------------------------------------------------------------------------


def test_a_result_says_how_it_was_made() -> None:
    settings = ReconstructSettings(method="cgls", iterations=3, views_every=2, slices=(1, 3))
    volume, facts, events, store = reconstruct(ct_scan(4), settings, preview=2)
    assert volume.data.shape == facts.shape == (2, 21, 21)
    assert volume.data.dtype == np.float32
    assert volume.first_slice == facts.first_slice == 1
    assert volume.voxel_mm == facts.voxel_mm == (0.5, 0.5, 0.5)
    made = json.loads(json.dumps(volume.provenance, allow_nan=False))
    assert made["method"] == "cgls"
    assert made["scan"] == "disc.nxs"
    assert made["settings"]["views_every"] == 2
    assert made["settings"]["tolerance"] == 1e-4  # the default that was taken, not the 0 that was asked
    assert made["rotation centre px"] == 10.0
    assert made["outcome"] == facts.outcome == "max_steps"
    assert made["iterations"] == facts.iterations == 3
    assert 0 < made["data residual"] < 1
    started = events[0]
    assert isinstance(started, protocol.Started)
    assert (started.total, started.preview_slice, started.run) == (3, 2, facts.result)
    steps = [event for event in events if isinstance(event, protocol.Step)]
    assert [step.step for step in steps] == [1, 2, 3]
    assert steps[0].data_residual > steps[-1].data_residual
    # the slices are equal, so the last iterate of the one is the result of all
    np.testing.assert_array_equal(store.iterate(facts.result, 3)[1], volume.data[1])
    np.testing.assert_allclose(volume.data[0], volume.data[1], atol=1e-6)


def test_reading_slices_counts_as_in_the_scan() -> None:
    settings = ReconstructSettings(method="cgls", iterations=2, slices=(1, 3))
    volume, facts, _, store = reconstruct(ct_scan(4), settings, preview=2)
    event, pixels = jobs.read_slice(protocol.ReadSlice(result=facts.result, index=2), store)
    np.testing.assert_array_equal(pixels, volume.data[1])
    assert (event.index, event.step) == (2, None)
    event, pixels = jobs.read_slice(protocol.ReadSlice(result=facts.result, index=2, step=99), store)
    assert event.step == 2
    for wrong in (protocol.ReadSlice(result=facts.result, index=0), protocol.ReadSlice(result=facts.result, index=3)):
        with pytest.raises(BadInput, match=r"is not part of .* \(1 to 2\)"):
            jobs.read_slice(wrong, store)
    with pytest.raises(BadInput, match="kept for slice 2, not 1"):
        jobs.read_slice(protocol.ReadSlice(result=facts.result, index=1, step=1), store)


@pytest.mark.parametrize("method", ["fbp", "cgls", "tv"])
def test_stopped_and_kept_gives_the_preview_slice(method: str) -> None:
    def watch(progress: Progress) -> None:
        if progress.stage == "slices" or progress.step == 2:
            raise jobs.StopAndKeep

    settings = ReconstructSettings(method=method, iterations=5)
    volume, facts, _, store = reconstruct(ct_scan(3), settings, preview=1, watch=watch)
    assert facts.outcome == volume.provenance["outcome"] == "stopped"
    assert (facts.first_slice, facts.shape) == (1, (1, 21, 21))
    assert facts.iterations == (1 if method == "fbp" else 2)
    assert math.isfinite(facts.data_residual)
    np.testing.assert_array_equal(volume.data[0], store.iterate(facts.result, 2)[1])


def test_stopped_before_the_first_iterate_gives_nothing() -> None:
    def watch(progress: Progress) -> None:
        raise jobs.StopAndKeep

    events: list[protocol.Event] = []
    store = Store()
    store.put_scan("scan", ct_scan())
    request = protocol.Reconstruct(scan="scan", settings=ReconstructSettings(method="fbp"), preview_slice=0)

    def early(scan: Acquisition) -> None:
        jobs.reconstruct(request, store, events.append, watch, CPU)

    # the watch of a direct method is called once the preview is done, so it is kept
    early(store.scan("scan"))
    assert isinstance(events[-1], protocol.Reconstructed)
    events.clear()

    def refuse(event: protocol.Event) -> None:
        events.append(event)
        raise jobs.StopAndKeep

    with pytest.raises(Cancelled):
        jobs.reconstruct(request, store, refuse, unwatched, CPU)
    assert [type(event) for event in events] == [protocol.Started]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["ct", "mri"])
@pytest.mark.parametrize("slices", [(0, 1), (0, 3)], ids=["alone", "among others"])
def test_an_empty_slice_is_an_empty_image_in_every_method(kind: str, slices: tuple[int, int], tmp_path: Path) -> None:
    scan = ct_scan(3, empty=(0,)) if kind == "ct" else mri_scan(3, empty=(0,))
    model = str(weights(1 if kind == "ct" else 2, tmp_path))
    for method in methods_for(scan):
        settings = ReconstructSettings(method=method, iterations=4, slices=slices, model=model)
        volume, facts, events, _ = reconstruct(scan, settings)
        assert np.isfinite(volume.data).all(), method
        assert not volume.data[0].any(), method
        assert facts.outcome != "diverged", method
        assert math.isfinite(facts.data_residual), method
        assert (facts.low, facts.high) != (0.0, 0.0)
        for event in events:
            if isinstance(event, protocol.Step):
                assert (event.data_residual, event.fixed_point_residual) == (0.0, 0.0), method
        if slices == (0, 3):
            assert volume.data[1].any(), method
            np.testing.assert_allclose(volume.data[1], volume.data[2], atol=1e-5)


def test_an_empty_slice_does_not_change_the_others() -> None:
    settings = ReconstructSettings(method="sense", iterations=5)
    mixed, *_ = reconstruct(mri_scan(2, empty=(0,)), settings)
    alone, *_ = reconstruct(mri_scan(1), settings)
    np.testing.assert_allclose(mixed.data[1], alone.data[0], atol=1e-5)


@pytest.mark.parametrize("value", [-0.05, 0.3], ids=["all negative", "constant"])
def test_sinograms_of_one_value_are_reconstructed(value: float) -> None:
    scan = ct_scan(1)
    scan = replace(scan, projections=np.full(scan.shape, value, dtype=np.float32))
    for method in ("fbp", "cgls", "tv"):
        volume, facts, events, _ = reconstruct(scan, ReconstructSettings(method=method, iterations=6))
        assert np.isfinite(volume.data).all()
        assert facts.outcome != "diverged", method
        for event in events:
            if isinstance(event, protocol.Step):
                assert event.fixed_point_residual <= 2, method


def test_one_view_is_enough_for_an_image_and_none_can_be_left_out() -> None:
    scan = ct_scan(1, views=1)
    volume, facts, _, _ = reconstruct(scan, ReconstructSettings(method="fbp"))
    assert np.isfinite(volume.data).all()
    assert volume.data.any()
    assert facts.outcome == "direct"
    with pytest.raises(BadInput, match="every 2-th of 1 views: the step must lie in 1 to 1"):
        reconstruct(scan, ReconstructSettings(method="fbp", views_every=2))


def test_views_at_one_and_the_same_angle_have_no_spacing() -> None:
    scan = ct_scan(1, views=4)
    scan = replace(scan, geometry=replace(scan.geometry, angle_rad=np.zeros(4)))
    assert measure(scan, slice(0, 1), CPU).view_step_rad is None
    assert measure(ct_scan(1, views=4), slice(0, 1), CPU).view_step_rad == pytest.approx(math.pi / 4)


def test_a_matrix_that_is_odd_and_not_square_gives_the_object() -> None:
    volume, _, _, _ = reconstruct(mri_scan(1), ReconstructSettings(method="sense", iterations=40, tolerance=1e-6))
    assert volume.data.shape == (1, 17, 26)
    inside, outside = volume.data[0, 6:11, 9:17], volume.data[0, :4]
    assert inside.min() > 0.5
    assert outside.max() < 0.1


def test_values_that_are_not_finite_are_named() -> None:
    scan = mri_scan(2)
    kspace = np.array(scan.kspace[:])
    kspace[1, 0, 3, 5] = complex(0, math.nan)
    with pytest.raises(BadInput, match=r"box\.h5: 1 k-space values are not finite, .* \[1, 0, 3, 5\]"):
        measure(replace(scan, kspace=kspace), slice(0, 2), CPU)


@pytest.mark.parametrize("scan", [ct_scan(1), mri_scan(1)], ids=["ct", "mri"])
def test_undersampling_of_the_other_kind_is_refused(scan: Acquisition) -> None:
    wrong = Undersampling(accelerate=2) if isinstance(scan, CtAcquisition) else Undersampling(views_every=2)
    with pytest.raises(BadInput, match="leave out"):
        measure(scan, slice(0, 1), CPU, wrong)
    for step in (0, -1, 1000):
        with pytest.raises(BadInput):
            measure(
                scan,
                slice(0, 1),
                CPU,
                Undersampling(views_every=step) if isinstance(scan, CtAcquisition) else Undersampling(accelerate=step),
            )


# --- adaptation ------------------------------------------------------------------------------------


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Path:
    """A folder in which the names of the scans exist, so that their hash can be taken."""
    for name in ("disc.nxs", "box.h5"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_training_leaves_empty_slices_out(files: Path) -> None:
    settings = FineTuneSettings(steps=2, start=str(weights(1, files)))
    mostly = replace(ct_scan(6, empty=(0, 1, 2, 4, 5)), path=files / "disc.nxs")
    alone = replace(ct_scan(1), path=files / "disc.nxs")
    last, events = adapt(mostly, settings, files / "mostly.safetensors")
    assert all(math.isfinite(loss) for loss in last.manifest["losses"])
    assert last.step == 2
    # one slice is left in both, so both are the same training
    other, _ = adapt(alone, settings, files / "alone.safetensors")
    assert last.manifest["losses"] == other.manifest["losses"]
    assert [type(event) for event in events] == [protocol.Trained, protocol.Trained, protocol.Tuned]
    with pytest.raises(BadInput, match=r"disc\.nxs: all slices are zero"):
        adapt(replace(mostly, projections=np.zeros(mostly.shape, np.float32)), settings, files / "none.safetensors")


@pytest.mark.parametrize(("group", "told"), [("rot90+flip", True), ("rotation", False)])
def test_a_group_that_only_exchanges_the_views_is_told(files: Path, group: str, told: bool) -> None:
    # 12 views over half a turn: quarter turns and flips permute them
    scan = replace(ct_scan(1), path=files / "disc.nxs")
    settings = FineTuneSettings(steps=1, group=group, start=str(weights(1, files)))
    _, events = adapt(scan, settings, files / "out.safetensors")
    advice = [event.text for event in events if isinstance(event, protocol.Advice)]
    assert len(advice) == told
    assert all(f"The group {group} brings no information" in text for text in advice)


def test_settings_of_the_loss_reach_the_training(files: Path) -> None:
    scan = replace(ct_scan(1), path=files / "disc.nxs")
    losses = []
    for settings in (
        FineTuneSettings(steps=1),
        FineTuneSettings(steps=1, data_term="sure"),
        FineTuneSettings(steps=1, photons=500.0),
        FineTuneSettings(steps=1, equivariance_weight=0.0),
    ):
        given = replace_settings(settings, start=str(weights(1, files)), noise=0.01)
        last, _ = adapt(scan, given, files / "out.safetensors")
        losses.append(last.manifest["losses"][0])
    assert len(set(losses)) == len(losses)
    with pytest.raises(BadInput, match="no truth to be supervised by"):
        adapt(scan, FineTuneSettings(steps=1, data_term="supervised"), files / "out.safetensors")


def test_checkpoints_say_what_they_come_from(files: Path) -> None:
    scan = replace(mri_scan(2, shape=(24, 24)), path=files / "box.h5")
    settings = FineTuneSettings(steps=1, seed=7, accelerate=2, start=str(weights(2, files)))
    adapt(scan, settings, files / "out.safetensors")
    manifest = read_checkpoint(files / "out.safetensors").manifest
    assert manifest["settings"]["seed"] == 7
    assert manifest["settings"]["accelerate"] == 2
    assert manifest["scans"] == [{"name": "box.h5", "sha256": content_hash(files / "box.h5")}]
    assert manifest["torch"] == torch.__version__
    assert len(manifest["losses"]) == 1


@pytest.mark.parametrize("keep", [False, True])
def test_cancelled_training_leaves_its_checkpoint(files: Path, keep: bool) -> None:
    def watch(progress: Progress) -> None:
        if progress.stage == "train" and progress.step == 2:
            raise jobs.StopAndKeep if keep else Cancelled

    scan, out = replace(ct_scan(2), path=files / "disc.nxs"), files / "out.safetensors"
    settings = FineTuneSettings(steps=50, start=str(weights(1, files)))
    events: list[protocol.Event] = []
    if keep:
        jobs.adapt((scan,), settings, out, events.append, watch, CPU)
        done = events[-1]
        assert isinstance(done, protocol.Tuned)
        assert (done.stopped, done.steps, len(done.losses)) == (True, 2, 2)
    else:
        with pytest.raises(Cancelled):
            jobs.adapt((scan,), settings, out, events.append, watch, CPU)
        assert [type(event) for event in events] == [protocol.Trained] * 2
    checkpoint = read_checkpoint(out)
    assert checkpoint.step == 2
    assert checkpoint.optimiser
    # it can be continued, with its own settings and the new limit
    last, _ = adapt(scan, FineTuneSettings(steps=3, seed=99, resume=str(out)), files / "on.safetensors")
    assert (last.step, last.manifest["settings"]["seed"]) == (3, 0)


def test_adaptation_refuses_early_what_cannot_end_well(files: Path) -> None:
    scan = replace(ct_scan(2), path=files / "disc.nxs")
    start = str(weights(1, files))
    out = files / "out.safetensors"
    good = FineTuneSettings(steps=1, start=start)
    refused = [
        (replace_settings(good, steps=0), out, "neither a number of steps nor a time"),
        (replace_settings(good, steps=0, minutes=math.nan), out, "neither a number of steps nor a time"),
        (replace_settings(good, batch=0), out, "batch 0"),
        (replace_settings(good, learning_rate=math.nan), out, "learning rate nan"),
        (replace_settings(good, equivariance_weight=-1.0), out, "equivariance weight -1"),
        (good, files / "nowhere" / "out.safetensors", "does not exist"),
        (good, files, "cannot be written"),
        (replace_settings(good, start=str(weights(2, files))), out, "not for CT scans"),
        (replace_settings(good, start=None, resume=start), out, "without the state of a training"),
        (replace_settings(good, accelerate=2), out, "no phase-encoding lines"),
    ]
    for settings, target, message in refused:
        with pytest.raises(BadInput, match=message):
            adapt(scan, settings, target)
    assert not out.exists()
    with pytest.raises(BadInput, match="no scan"):
        jobs.adapt((), good, out, lambda event: None, unwatched, CPU)
    with pytest.raises(BadInput, match="cannot be adapted to together"):
        jobs.adapt((scan, mri_scan(1)), good, out, lambda event: None, unwatched, CPU)


def test_a_training_that_does_not_say_its_settings_is_not_resumed(files: Path) -> None:
    scan = replace(ct_scan(1), path=files / "disc.nxs")
    adapt(scan, FineTuneSettings(steps=1, start=str(weights(1, files))), files / "out.safetensors")
    checkpoint = read_checkpoint(files / "out.safetensors")
    for manifest in ({}, {"settings": {"steps": "many"}}):
        write_checkpoint(replace(checkpoint, manifest=manifest), files / "bare.safetensors")
        with pytest.raises(BadInput, match="does not say with which settings"):
            adapt(scan, FineTuneSettings(steps=2, resume=str(files / "bare.safetensors")), files / "b.safetensors")


def replace_settings(settings: FineTuneSettings, **changes: object) -> FineTuneSettings:
    values = {name: getattr(settings, name) for name in FineTuneSettings.__struct_fields__}
    return FineTuneSettings(**(values | changes))


@pytest.mark.parametrize(("scan", "truncated"), [("sample", False), ("derived/i13_24737_nxtomo.nxs", True)])
def test_opening_says_whether_the_object_reaches_beyond_the_detector(
    scan: str, truncated: bool, request: pytest.FixtureRequest
) -> None:
    path = sample_path("ct") if scan == "sample" else request.getfixturevalue("shared_data") / scan
    opened = open_scan(path, Recipe(), unwatched)
    assert isinstance(opened, CtAcquisition)
    assert opened.geometry.truncated is truncated
    told = dict(scan_facts("scan-1", opened, torch.device("cpu")).geometry)["object"]
    assert ("beyond" in told) is truncated
