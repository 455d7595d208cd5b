"""Adapting the equilibrium model to the active scan, and watching how its loss falls."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path, PurePath

import pyqtgraph as pg
from PySide6.QtCore import QEvent, QStandardPaths, Qt
from PySide6.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QToolButton,
    QWidget,
)

from equipoise.session import Session
from equipoise.state import EnginePhase, Job, JobPhase, State, Training, find_job, find_scan, sentence
from equipoise.view.controls import WEIGHTS_FILTER, ModelChooser
from equipoise.view.plots import colour_plot, log_plot, positive_points, series_pen, series_symbol
from equipoise.view.scrolled import scrolled_column
from equipoise_engine.protocol import FineTuneSettings, ReconstructSettings, ScanFacts

EXPLANATION = (
    "Adaptation trains the equilibrium model further on the measured data of this scan alone, without a "
    "ground truth. Its images must agree with the data, and a rotated image that is measured anew must come "
    "back rotated."
)
CHECKPOINT_FILTER = "Checkpoints (*.safetensors)"
_SYMBOLS_UP_TO = 40


class AdaptView(QWidget):
    """Settings, start and stop of an adaptation, and its live loss."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._state = State()
        self._out_by_hand = False
        self._curves: dict[str, pg.PlotDataItem] = {}
        self._drawn: int | None = None
        """Job whose curves are drawn."""
        self._sampling: dict[int, tuple[int, int]] = {}
        """Job -> views_every and accelerate that it was started with."""

        explanation = QLabel(EXPLANATION)
        explanation.setWordWrap(True)

        self.limit_kind = QComboBox()
        self.limit_kind.addItems(["minutes", "steps"])
        self.limit_kind.setAccessibleName("Kind of limit")
        self.limit_kind.setToolTip("End after a time, or after a number of optimiser steps")
        self.limit_kind.currentIndexChanged.connect(self._show_limit)
        self.minutes = _number("Minutes", "Time limit in minutes", 0.1, 24 * 60, 5.0, 1)
        self.steps = QSpinBox()
        self.steps.setRange(1, 1_000_000)
        self.steps.setValue(200)
        _describe(self.steps, "Steps", "Number of optimiser steps in all")
        limit = QHBoxLayout()
        limit.setContentsMargins(0, 0, 0, 0)
        for field in (self.minutes, self.steps):
            limit.addWidget(field, 1)
        limit.addWidget(self.limit_kind)
        limits = QWidget()
        limits.setLayout(limit)

        self.learning_rate = _number("Learning rate", "Step size of the optimiser", 1e-6, 1e-1, 2e-4, 6)
        self.learning_rate.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
        self.equivariance = _number(
            "Equivariance weight",
            "Weight of the equivariance term beside the data term (no unit; Chen, Tachella and Davies, 2021)",
            0.0,
            100.0,
            1.0,
            2,
        )
        self.batch = QSpinBox()
        self.batch.setRange(1, 64)
        self.batch.setValue(2)
        _describe(self.batch, "Batch", "Slices per optimiser step; more need more memory")
        self.views_every = QSpinBox()
        self.views_every.setRange(1, 64)
        _describe(self.views_every, "Use every k-th view", "1 uses all views; more try a shorter scan")
        self.accelerate = QSpinBox()
        self.accelerate.setRange(1, 16)
        _describe(self.accelerate, "Acceleration", "1 uses all lines; R keeps one of R lines, and the centre")
        self.seed = QSpinBox()
        self.seed.setRange(0, 2_147_483_647)
        _describe(self.seed, "Seed", "Start of the random numbers; the same seed gives the same result")
        self.start_weights = ModelChooser("Start weights")
        self.resume = PathField(
            "Continue from", "Checkpoint to continue bit for bit; its own settings win, but for the limit"
        )
        self.resume.field.setPlaceholderText("a new start")
        self.resume.button.clicked.connect(self._ask_resume)
        self.resume.field.textChanged.connect(self._enable)
        self.out = PathField("Weights to write", "File for the adapted weights; also saved at intervals")
        self.out.button.clicked.connect(self._ask_out)
        self.out.field.textEdited.connect(self._note_out)
        self.out.field.textChanged.connect(self._enable)

        self.form = QFormLayout()
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.form.addRow("&Limit", limits)
        self.form.addRow("Every k-th &view", self.views_every)
        self.form.addRow("&Acceleration", self.accelerate)
        self.form.addRow("&Start weights", self.start_weights)
        self.form.addRow("&Write to", self.out)
        self.more = QToolButton()
        self.more.setText("More settings")
        self.more.setCheckable(True)
        self.more.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.more.setAutoRaise(True)
        self.more.setAccessibleName("More settings")
        self.more.setToolTip("Optimiser, seed, and continuing from a checkpoint")
        self.more.toggled.connect(self._show_more)
        self.form.addRow(self.more)
        self.form.addRow("Learning ra&te", self.learning_rate)
        self.form.addRow("E&quivariance", self.equivariance)
        self.form.addRow("&Batch", self.batch)
        self.form.addRow("See&d", self.seed)
        self.form.addRow("&Continue", self.resume)

        self.start_button = QPushButton("Start")
        self.start_button.setToolTip("Adapt the model to the active scan")
        self.start_button.clicked.connect(self.start)
        self.keep_button = QPushButton("Stop and keep")
        self.keep_button.setToolTip("End after this step and write the weights as they are now")
        self.keep_button.clicked.connect(lambda: self._stop(True))
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.setToolTip("End after this step; the checkpoint can be continued")
        self.cancel_button.clicked.connect(lambda: self._stop(False))
        buttons = QHBoxLayout()
        for button in (self.start_button, self.keep_button, self.cancel_button):
            buttons.addWidget(button)

        self.progress = QLabel()
        self.progress.setWordWrap(True)
        self.progress.setAccessibleName("Progress of the adaptation")
        self.progress.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.plot = log_plot("Loss terms over the step", "Loss", self.palette())
        self.plot.setMinimumHeight(190)
        self.use_button = QPushButton("Reconstruct with adapted model")
        self.use_button.setToolTip("Reconstruct the slice that is shown with these weights")
        self.use_button.clicked.connect(self._use)

        column = scrolled_column(self, 250)
        column.addWidget(explanation)
        column.addLayout(self.form)
        column.addLayout(buttons)
        column.addWidget(self.progress)
        column.addWidget(self.use_button)
        column.addWidget(self.plot, 1)
        column.addStretch(0)
        self._show_limit()
        self._show_more(False)
        self._show_scan(None)
        self._show_training()
        self.show_change(self._state, session.state)

    # --- from the state to the widgets

    def show_change(self, old: State, new: State) -> None:
        """Bring what differs between two states onto the screen."""
        old, self._state = self._state, new
        if old.models is not new.models:
            self.start_weights.show_models(new.models)
        facts = find_scan(new, new.scan)
        if facts is not find_scan(old, old.scan):
            self._show_scan(facts)
        if old.trainings is not new.trainings or old.jobs is not new.jobs:
            self._show_training()
        self._enable()

    def _training(self) -> tuple[Training | None, Job | None]:
        """The newest adaptation and its job."""
        training = self._state.trainings[-1] if self._state.trainings else None
        return training, None if training is None else find_job(self._state, training.job)

    def _show_scan(self, facts: ScanFacts | None) -> None:
        kind = facts.kind if facts is not None else ""
        self.form.setRowVisible(self.views_every, kind == "ct")
        self.form.setRowVisible(self.accelerate, kind == "mri")
        if facts is not None and facts.kind == "ct":
            self.views_every.setMaximum(max(1, facts.shape[0] // 2))
        if facts is not None and not self._out_by_hand:
            self.out.field.setText(default_out(facts.path))

    def _show_training(self) -> None:
        training, job = self._training()
        self.progress.setVisible(training is not None)
        self.plot.setVisible(training is not None and bool(training.steps))
        if training is None:
            self.use_button.hide()
            return
        if training.job != self._drawn:
            self._drawn = training.job
            for curve in self._curves.values():
                self.plot.getPlotItem().removeItem(curve)
            self._curves.clear()
        for name, values in training.terms:
            if name not in self._curves:
                number = len(self._curves)
                pen = series_pen(number)
                curve = pg.PlotDataItem(
                    pen=pen, symbolSize=5, symbolPen=None, symbolBrush=pg.mkBrush(pen.color()), name=name
                )
                self.plot.getPlotItem().addItem(curve)
                self._curves[name] = curve
                colour_plot(self.plot, self.palette())
            steps, kept = positive_points(training.steps, values)
            number = list(self._curves).index(name)
            symbol = series_symbol(number) if len(steps) <= _SYMBOLS_UP_TO else None
            self._curves[name].setData(steps, kept, symbol=symbol)
        self.progress.setText(_progress(training, job))
        self.use_button.setVisible(not _active(job) and training.out in self._state.models)

    def _enable(self) -> None:
        training, job = self._training()
        running = training is not None and _active(job)
        there = find_scan(self._state, self._state.scan) is not None
        ready = self._state.engine.phase not in (EnginePhase.RESTARTING, EnginePhase.STOPPED)
        self.start_button.setEnabled(there and ready and not running and bool(self.out.path()))
        stopping = job is not None and job.phase is JobPhase.CANCELLING
        self.keep_button.setEnabled(running and not stopping)
        self.cancel_button.setEnabled(running and not stopping)
        self.use_button.setEnabled(there and ready)
        # a checkpoint brings its own settings, but for the limit
        fresh = not self.resume.path()
        for field in (
            self.learning_rate,
            self.equivariance,
            self.batch,
            self.seed,
            self.views_every,
            self.accelerate,
            self.start_weights,
        ):
            field.setEnabled(fresh)

    # --- gestures

    def settings(self) -> FineTuneSettings:
        """The settings as they are chosen."""
        facts = find_scan(self._state, self._state.scan)
        by_time = self.limit_kind.currentIndex() == 0
        return FineTuneSettings(
            steps=0 if by_time else self.steps.value(),
            minutes=self.minutes.value() if by_time else 0.0,
            learning_rate=self.learning_rate.value(),
            equivariance_weight=self.equivariance.value(),
            batch=self.batch.value(),
            views_every=self.views_every.value() if facts is not None and facts.kind == "ct" else 1,
            accelerate=self.accelerate.value() if facts is not None and facts.kind == "mri" else 1,
            seed=self.seed.value(),
            start=self.start_weights.model(),
            resume=self.resume.path() or None,
        )

    def start(self) -> None:
        """Start the adaptation."""
        if not self.start_button.isEnabled():
            return
        settings = self.settings()
        known = {training.job for training in self._state.trainings}
        self._session.adapt(settings, self.out.path())
        for training in self._session.state.trainings:
            if training.job not in known:
                self._sampling[training.job] = (settings.views_every, settings.accelerate)

    def _stop(self, keep: bool) -> None:
        _, job = self._training()
        if job is not None:
            self._session.cancel(job.id, keep)

    def _use(self) -> None:
        training, _ = self._training()
        if training is None:
            return
        if training.scans and self._state.scan not in training.scans:
            self._session.select_scan(training.scans[0])
        index = self._session.state.slice_index
        views_every, accelerate = self._sampling.get(training.job, (1, 1))
        self._session.reconstruct(
            ReconstructSettings(
                method="deq",
                model=training.out,
                views_every=views_every,
                accelerate=accelerate,
                slices=(index, index + 1),
            )
        )

    def _note_out(self) -> None:
        self._out_by_hand = True

    def _ask_out(self) -> None:
        dialog = QFileDialog(self, "Write the adapted weights to", self.out.path(), WEIGHTS_FILTER)
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setDefaultSuffix("safetensors")
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(self._take_out)
        dialog.open()

    def _take_out(self, path: str) -> None:
        self._out_by_hand = True
        self.out.field.setText(os.path.abspath(path))

    def _ask_resume(self) -> None:
        folder = str(PurePath(self.out.path()).parent) if self.out.path() else ""
        dialog = QFileDialog(self, "Continue from a checkpoint", folder, CHECKPOINT_FILTER)
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(lambda path: self.resume.field.setText(os.path.abspath(path)))
        dialog.open()

    def _show_limit(self) -> None:
        by_time = self.limit_kind.currentIndex() == 0
        self.minutes.setVisible(by_time)
        self.steps.setVisible(not by_time)

    def _show_more(self, more: bool) -> None:
        self.more.setArrowType(Qt.ArrowType.DownArrow if more else Qt.ArrowType.RightArrow)
        for field in (self.learning_rate, self.equivariance, self.batch, self.seed, self.resume):
            self.form.setRowVisible(field, more)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            colour_plot(self.plot, self.palette())


class PathField(QWidget):
    """A path that is typed, or chosen with the button beside it."""

    def __init__(self, name: str, tip: str) -> None:
        super().__init__()
        self.field = QLineEdit()
        self.field.setAccessibleName(name)
        self.field.setToolTip(tip)
        self.field.textChanged.connect(lambda path: self.field.setToolTip(f"{tip}\n{path}".strip()))
        self.button = QToolButton()
        self.button.setText("…")
        self.button.setAccessibleName(f"Choose: {name}")
        self.button.setToolTip("Choose with a dialog")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.field, 1)
        layout.addWidget(self.button)
        self.setFocusProxy(self.field)

    def path(self) -> str:
        """The path without blanks around it, or nothing."""
        return self.field.text().strip()


def default_out(scan_path: str) -> str:
    """Path for adapted weights in the documents folder, named after the scan; no file has it yet."""
    documents = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.DocumentsLocation)
    folder = Path(documents) if documents else Path.home()
    stem = PurePath(scan_path).stem or "scan"
    for number in count(1):
        path = folder / f"{stem}-adapted{'' if number == 1 else f'-{number}'}.safetensors"
        if not path.exists():
            return str(path)
    raise AssertionError("count() never ends")


def _active(job: Job | None) -> bool:
    return job is not None and job.active


def _progress(training: Training, job: Job | None) -> str:
    """Where an adaptation stands, and how it ended, for people."""
    if _active(job) and not training.steps:
        return "Waiting for the first step"
    parts = []
    if training.steps:
        total = f" of {training.total}" if training.total else ""
        parts.append(f"Step {training.steps[-1]}{total} · {_duration(training.seconds)}")
        if training.forward_steps and training.backward_steps:
            parts.append(
                f"solver steps: {training.forward_steps[-1]:.1f} forward, {training.backward_steps[-1]:.1f} backward"
            )
    text = " · ".join(parts)
    if job is None or job.active:
        if job is not None and job.phase is JobPhase.CANCELLING:
            text += "\nStopping after this step"
        return text
    match job.phase:
        case JobPhase.DONE:
            text += f"\nThe adapted weights are in {training.out}"
        case JobPhase.CANCELLED:
            text += "\nCancelled"
        case _:
            text += f"\nFailed: {sentence(job.message, job.hint)}"
    return text.strip()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _describe(field: QWidget, name: str, tip: str) -> None:
    field.setAccessibleName(name)
    field.setToolTip(tip)
    field.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)


def _number(name: str, tip: str, low: float, high: float, value: float, decimals: int) -> QDoubleSpinBox:
    field = QDoubleSpinBox()
    field.setDecimals(decimals)
    field.setRange(low, high)
    field.setValue(value)
    _describe(field, name, tip)
    return field
