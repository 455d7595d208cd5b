"""The list of jobs: what runs, how far it is, how long it takes, and the buttons that stop it."""

from __future__ import annotations

import time
from functools import partial

import qtawesome
from PySide6.QtCore import QEvent, Qt, QTimer, Slot
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QProgressBar,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from equipoise.session import Session
from equipoise.state import Job, JobPhase, State, active_jobs, sentence
from equipoise.view.theme import colours

_PHASES = {
    JobPhase.QUEUED: "Waiting",
    JobPhase.RUNNING: "Running",
    JobPhase.CANCELLING: "Stopping …",
    JobPhase.DONE: "Done",
    JobPhase.CANCELLED: "Cancelled",
    JobPhase.FAILED: "Failed",
}
_ICONS = {
    JobPhase.QUEUED: "fa5s.clock",
    JobPhase.RUNNING: "fa5s.play",
    JobPhase.CANCELLING: "fa5s.hourglass-half",
    JobPhase.DONE: "fa5s.check",
    JobPhase.CANCELLED: "fa5s.ban",
    JobPhase.FAILED: "fa5s.times-circle",
}
_STAGES = {
    "read": "reading",
    "reconstruct": "iterating",
    "solve": "iterating",
    "backward": "differentiating",
    "slices": "slice by slice",
    "train": "training",
    "write": "writing",
}
_TITLE, _PHASE, _PROGRESS, _TIME, _MESSAGE, _BUTTONS = range(6)


def format_duration(seconds: float) -> str:
    """Return a duration for people, as "4.2 s" or "3:05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def time_text(job: Job, now: float) -> str:
    """Return how long a job has run, and how long it may still take where that can be told."""
    if job.started is None:
        return ""
    if not job.active:
        return format_duration(job.seconds)
    elapsed = max(now - job.started, 0.0)
    text = format_duration(elapsed)
    if 0 < job.done < job.total and elapsed > 1.0:
        text += f", {format_duration(elapsed * (job.total - job.done) / job.done)} left"
    return text


class JobsView(QWidget):
    """All jobs of the session, newest first."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.table = QTableWidget(0, 6)
        self.table.setHorizontalHeaderLabels(["Job", "State", "Progress", "Time", "Message", ""])
        self.table.setAccessibleName("Jobs")
        self.table.verticalHeader().hide()
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setShowGrid(False)
        self.table.setWordWrap(False)
        self.table.setAlternatingRowColors(True)
        header = self.table.horizontalHeader()
        for column, width in ((_TITLE, 180), (_PHASE, 100), (_PROGRESS, 120), (_TIME, 130), (_BUTTONS, 200)):
            self.table.setColumnWidth(column, width)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.setSectionResizeMode(_MESSAGE, QHeaderView.ResizeMode.Stretch)
        self.clear_button = QPushButton("Clear ended jobs")
        self.clear_button.setToolTip("Take the jobs that have ended out of the list; results stay")
        self.clear_button.clicked.connect(session.clear_ended_jobs)
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(self.clear_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.addWidget(self.table, 1)
        layout.addLayout(row)
        self._rows: list[int] = []
        self._clock = QTimer(self, interval=500)
        self._clock.timeout.connect(self._tick)
        self.show_change(State(), session.state)

    def show_change(self, old: State, new: State) -> None:
        """Follow the jobs."""
        if old.jobs is new.jobs and self._rows:
            return
        ids = [job.id for job in reversed(new.jobs)]
        if ids != self._rows:
            self._rebuild(ids)
        before = {job.id: job for job in old.jobs}
        for row, job in enumerate(reversed(new.jobs)):
            if before.get(job.id) is not job or not self._item(row, _TITLE).text():
                self._fill(row, job)
        if active_jobs(new):
            self._clock.start()
        else:
            self._clock.stop()
        self.table.setColumnHidden(_BUTTONS, not active_jobs(new))
        self.clear_button.setEnabled(len(active_jobs(new)) < len(new.jobs))

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Draw the icons anew in the colours of another palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and hasattr(self, "_rows"):
            for row, job in enumerate(reversed(self._session.state.jobs)):
                if row < len(self._rows) and self._rows[row] == job.id:
                    self._fill(row, job)

    def _rebuild(self, ids: list[int]) -> None:
        # new jobs come in at the top; the others keep their rows and their buttons
        gone = set(self._rows) - set(ids)
        for row in reversed(range(len(self._rows))):
            if self._rows[row] in gone:
                self.table.removeRow(row)
                del self._rows[row]
        fresh = [job for job in ids if job not in self._rows]
        for job in reversed(fresh):
            self.table.insertRow(0)
            self._rows.insert(0, job)
            for column in (_TITLE, _PHASE, _TIME, _MESSAGE):
                self.table.setItem(0, column, QTableWidgetItem(""))
            bar = QProgressBar(textVisible=True)
            self.table.setCellWidget(0, _PROGRESS, bar)
            self.table.setCellWidget(0, _BUTTONS, self._buttons(job))

    def _item(self, row: int, column: int) -> QTableWidgetItem:
        item = self.table.item(row, column)
        assert item is not None
        return item

    def _buttons(self, job: int) -> QWidget:
        cancel = QPushButton("Cancel")
        cancel.setObjectName("cancel")
        cancel.setToolTip("Stop this job at its next iterate or step and drop what it has")
        cancel.clicked.connect(partial(self._session.cancel, job, False))
        keep = QPushButton("Stop and keep")
        keep.setObjectName("keep")
        keep.setToolTip("Stop this job at its next iterate or step; what it has so far becomes the result")
        keep.clicked.connect(partial(self._session.cancel, job, True))
        box = QWidget()
        layout = QHBoxLayout(box)
        layout.setContentsMargins(2, 1, 2, 1)
        layout.addWidget(cancel)
        layout.addWidget(keep)
        layout.addStretch(1)
        return box

    def _fill(self, row: int, job: Job) -> None:
        chosen = colours(self.palette())
        colour = {JobPhase.DONE: chosen.good, JobPhase.FAILED: chosen.bad}.get(job.phase, chosen.muted)
        self._item(row, _TITLE).setText(job.title)
        phase = self._item(row, _PHASE)
        phase.setText(_PHASES[job.phase])
        phase.setIcon(qtawesome.icon(_ICONS[job.phase], color=colour))
        self._item(row, _TIME).setText(time_text(job, time.monotonic()))
        stage = _STAGES.get(job.stage, job.stage) if job.phase is JobPhase.RUNNING else ""
        message = self._item(row, _MESSAGE)
        message.setText(sentence(job.message, job.hint) or stage)
        message.setToolTip(job.details or sentence(job.message, job.hint))
        bar = self.table.cellWidget(row, _PROGRESS)
        assert isinstance(bar, QProgressBar)
        bar.setAccessibleName(f"Progress of {job.title}")
        if job.active and job.phase is not JobPhase.QUEUED and job.total <= 0:
            bar.setRange(0, 0)
        else:
            total = job.total or 1
            bar.setRange(0, total)
            bar.setValue(total if job.phase is JobPhase.DONE else min(job.done, total))
            bar.setFormat(f"{job.done} of {job.total}" if job.total > 1 else "%p %")
        buttons = self.table.cellWidget(row, _BUTTONS)
        stoppable = job.active and job.phase is not JobPhase.CANCELLING
        for button in buttons.findChildren(QPushButton):
            button.setVisible(job.active and (button.objectName() == "cancel" or _keeps(job)))
            button.setEnabled(stoppable)
            button.setAccessibleName(f"{button.text()}: {job.title}")

    @Slot()
    def _tick(self) -> None:
        now = time.monotonic()
        for row, job in enumerate(reversed(self._session.state.jobs)):
            if job.active and row < len(self._rows) and self._rows[row] == job.id:
                self._item(row, _TIME).setText(time_text(job, now))


def _keeps(job: Job) -> bool:
    return job.kind in ("reconstruct", "adapt")
