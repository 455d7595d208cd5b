"""Adapting: the settings, start and stop, the live loss, and what comes after, with real gestures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import QStandardPaths, Qt
from PySide6.QtWidgets import QApplication, QFileDialog
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.state import Engine, EnginePhase, Job, JobPhase, State, Training, add_job, add_training
from equipoise.view.adapt import AdaptView, default_out
from equipoise_engine.protocol import FineTuneSettings, ReconstructSettings, ScanFacts
from equipoise_engine.recipe import Recipe

CT = ScanFacts(
    scan="ct",
    path="/data/tooth.h5",
    kind="ct",
    format="Data Exchange HDF5",
    state="counts",
    shape=(181, 8, 64),
    full_shape=(181, 8, 64),
    recipe=Recipe(),
    slices=8,
    geometry=(),
    matched=(),
    warnings=(),
    methods=("fbp", "deq"),
)
MRI = ScanFacts(
    scan="mri",
    path="/data/brain.h5",
    kind="mri",
    format="fastMRI HDF5",
    state="k-space",
    shape=(5, 8, 64, 48),
    full_shape=(5, 8, 64, 48),
    recipe=Recipe(),
    slices=5,
    geometry=(),
    matched=(),
    warnings=(),
    methods=("zerofilled", "deq"),
)


class Listener(Session):
    """A session that notes what it would send to the engine, and keeps the jobs as the real one does."""

    def __init__(self) -> None:
        super().__init__()
        self.adapted: list[tuple[FineTuneSettings, str]] = []
        self.cancelled: list[tuple[int, bool]] = []
        self.asked: list[ReconstructSettings] = []

    def adapt(self, settings: FineTuneSettings, out: str) -> None:
        self.adapted.append((settings, out))
        job = 100 + len(self.adapted)
        assert self.state.scan is not None
        state = add_job(self.state, Job(job, "adapt", "Adapt", JobPhase.RUNNING))
        self._set(add_training(state, Training(job, (self.state.scan,), out, total=settings.steps)))

    def cancel(self, job: int, keep: bool = False) -> None:
        self.cancelled.append((job, keep))

    def reconstruct(self, settings: ReconstructSettings) -> None:
        self.asked.append(settings)


@pytest.fixture
def session(qtbot: QtBot) -> Iterator[Listener]:
    session = Listener()
    session._set(State(engine=Engine(phase=EnginePhase.READY), scans=(CT, MRI), scan="ct", slice_index=3))
    yield session
    session.deleteLater()


@pytest.fixture
def view(qtbot: QtBot, session: Listener) -> AdaptView:
    view = AdaptView(session)
    qtbot.addWidget(view)
    session.changed.connect(view.show_change)
    view.resize(330, 760)
    view.show()
    qtbot.waitExposed(view)
    return view


def trained(session: Listener, **changes: object) -> None:
    """Let the newest adaptation report."""
    training = replace(session.state.trainings[-1], **changes)  # type: ignore[arg-type]
    session._set(replace(session.state, trainings=(*session.state.trainings[:-1], training)))


def end(session: Listener, phase: JobPhase, message: str = "", hint: str = "") -> None:
    """Let the newest job end."""
    job = replace(session.state.jobs[-1], phase=phase, message=message, hint=hint)
    session._set(replace(session.state, jobs=(*session.state.jobs[:-1], job)))


def press(qtbot: QtBot, button: object) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)  # type: ignore[call-overload]


def test_start_takes_the_defaults_for_five_minutes(qtbot: QtBot, view: AdaptView, session: Listener) -> None:
    press(qtbot, view.start_button)
    assert session.adapted == [(FineTuneSettings(minutes=5.0), default_out(CT.path))]


def test_chosen_settings_reach_the_engine(qtbot: QtBot, view: AdaptView, session: Listener, tmp_path: Path) -> None:
    view.limit_kind.setFocus()
    qtbot.keyClicks(view.limit_kind, "s")
    assert view.steps.isVisible()
    assert not view.minutes.isVisible()
    press(qtbot, view.more)
    for field, text in (
        (view.steps, "40"),
        (view.learning_rate, "0.001"),
        (view.equivariance, "2.5"),
        (view.batch, "3"),
        (view.views_every, "4"),
        (view.seed, "7"),
        (view.out.field, str(tmp_path / "w.safetensors")),
    ):
        assert field.isVisible()
        field.setFocus()
        field.selectAll()
        qtbot.keyClicks(field, text)
    press(qtbot, view.start_button)
    assert session.adapted == [
        (
            FineTuneSettings(
                steps=40,
                learning_rate=0.001,
                equivariance_weight=2.5,
                batch=3,
                views_every=4,
                seed=7,
            ),
            str(tmp_path / "w.safetensors"),
        )
    ]


def test_undersampling_is_that_of_the_kind_of_scan(view: AdaptView, session: Listener) -> None:
    assert view.views_every.isVisible()
    assert not view.accelerate.isVisible()
    view.views_every.setValue(3)
    session.select_scan("mri")
    assert not view.views_every.isVisible()
    assert view.accelerate.isVisible()
    view.accelerate.setValue(2)
    assert (view.settings().views_every, view.settings().accelerate) == (1, 2)
    session.select_scan("ct")
    assert (view.settings().views_every, view.settings().accelerate) == (3, 1)


def test_the_output_is_named_after_the_scan_until_the_user_names_it(
    qtbot: QtBot, view: AdaptView, session: Listener
) -> None:
    documents = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.DocumentsLocation)
    assert Path(view.out.path()).name == "tooth-adapted.safetensors"
    assert Path(view.out.path()).parent == Path(documents)
    session.select_scan("mri")
    assert Path(view.out.path()).name == "brain-adapted.safetensors"
    view.out.field.setFocus()
    view.out.field.selectAll()
    qtbot.keyClicks(view.out.field, "/tmp/mine.safetensors")
    session.select_scan("ct")
    assert view.out.path() == "/tmp/mine.safetensors"


def test_the_default_output_names_no_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QStandardPaths, "writableLocation", lambda place: str(tmp_path))
    assert default_out("/data/tooth.h5") == str(tmp_path / "tooth-adapted.safetensors")
    (tmp_path / "tooth-adapted.safetensors").write_bytes(b"x")
    assert default_out("/data/tooth.h5") == str(tmp_path / "tooth-adapted-2.safetensors")


def test_the_output_can_be_chosen_with_a_dialog(
    qtbot: QtBot, view: AdaptView, session: Listener, tmp_path: Path
) -> None:
    press(qtbot, view.out.button)
    dialog = view.findChild(QFileDialog)
    assert isinstance(dialog, QFileDialog)
    dialog.setDirectory(str(tmp_path))
    dialog.selectFile(str(tmp_path / "chosen"))
    dialog.accept()
    assert view.out.path() == str(tmp_path / "chosen.safetensors")


def test_a_checkpoint_brings_its_own_settings(qtbot: QtBot, view: AdaptView, session: Listener, tmp_path: Path) -> None:
    checkpoint = tmp_path / "earlier.safetensors"
    checkpoint.write_bytes(b"x")
    press(qtbot, view.more)
    press(qtbot, view.resume.button)
    dialog = view.findChild(QFileDialog)
    assert isinstance(dialog, QFileDialog)
    dialog.setDirectory(str(tmp_path))
    dialog.selectFile(str(checkpoint))
    dialog.accept()
    assert view.settings().resume == str(checkpoint)
    assert not view.learning_rate.isEnabled()
    assert view.minutes.isEnabled()
    view.resume.field.clear()
    assert view.learning_rate.isEnabled()
    assert view.settings().resume is None


def test_buttons_fit_what_is_going_on(qtbot: QtBot, view: AdaptView, session: Listener) -> None:
    def enabled() -> tuple[bool, bool, bool]:
        buttons = (view.start_button, view.keep_button, view.cancel_button)
        return tuple(button.isEnabled() for button in buttons)  # type: ignore[return-value]

    assert enabled() == (True, False, False)
    press(qtbot, view.start_button)
    assert enabled() == (False, True, True)
    assert view.progress.text() == "Waiting for the first step"
    press(qtbot, view.keep_button)
    press(qtbot, view.cancel_button)
    assert session.cancelled == [(101, True), (101, False)]
    end(session, JobPhase.CANCELLING)
    assert enabled() == (False, False, False)
    end(session, JobPhase.CANCELLED)
    assert enabled() == (True, False, False)
    assert "Cancelled" in view.progress.text()
    session._set(replace(session.state, engine=Engine(phase=EnginePhase.RESTARTING)))
    assert enabled() == (False, False, False)


def test_all_loss_terms_are_drawn_live(qtbot: QtBot, view: AdaptView, session: Listener) -> None:
    press(qtbot, view.start_button)
    trained(
        session,
        total=200,
        steps=(1, 2, 3),
        terms=(("total", (1.0, 0.5, 0.25)), ("data", (0.5, 0.0, 0.1)), ("equivariance", (0.5, 0.5, 0.15))),
        forward_steps=(10.0, 12.0, 14.5),
        backward_steps=(8.0, 8.0, 9.25),
        seconds=75.3,
    )
    curves = {c.name(): c for c in view.plot.getPlotItem().listDataItems()}
    assert list(curves) == ["total", "data", "equivariance"]
    assert list(curves["total"].getOriginalDataset()[1]) == [1.0, 0.5, 0.25]
    assert list(curves["data"].getOriginalDataset()[0]) == [1, 3], "a zero has no place on a log axis"
    assert view.plot.getPlotItem().getAxis("left").logMode
    assert view.progress.text() == "Step 3 of 200 · 75.3 s · solver steps: 14.5 forward, 9.2 backward"
    QApplication.processEvents()
    view.grab()


def test_a_new_adaptation_starts_with_an_empty_plot(qtbot: QtBot, view: AdaptView, session: Listener) -> None:
    press(qtbot, view.start_button)
    trained(session, steps=(1,), terms=(("total", (1.0,)),))
    end(session, JobPhase.FAILED, "The training diverged.", "Take a smaller learning rate.")
    assert "Failed: The training diverged. Take a smaller learning rate." in view.progress.text()
    press(qtbot, view.start_button)
    assert view.plot.getPlotItem().listDataItems() == []
    assert not view.plot.isVisible()


def test_the_adapted_model_can_be_used_at_once(qtbot: QtBot, view: AdaptView, session: Listener) -> None:
    view.views_every.setValue(3)
    press(qtbot, view.start_button)
    out = session.adapted[0][1]
    trained(session, steps=(1,), terms=(("total", (1.0,)),), total=1, seconds=2.0)
    assert not view.use_button.isVisible()
    session._set(replace(session.state, models=(out,)))
    end(session, JobPhase.DONE)
    assert view.use_button.isVisible()
    assert f"The adapted weights are in {out}" in view.progress.text()
    # looking at another scan, and at other settings, meanwhile
    view.views_every.setValue(1)
    session.select_scan("mri")
    press(qtbot, view.use_button)
    assert session.state.scan == "ct"
    index = session.state.slice_index
    assert session.asked == [ReconstructSettings(method="deq", model=out, views_every=3, slices=(index, index + 1))]


def test_weights_of_this_session_can_be_the_start(qtbot: QtBot, view: AdaptView, session: Listener) -> None:
    session._set(replace(session.state, models=("/w/a.safetensors",)))
    view.start_weights.box.setFocus()
    qtbot.keyClick(view.start_weights.box, Qt.Key.Key_Down)
    assert view.settings().start == "/w/a.safetensors"
