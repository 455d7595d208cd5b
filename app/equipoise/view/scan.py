"""What is open: the scans, their facts, what was matched and why, and the results made from them."""

from __future__ import annotations

from pathlib import PurePath

from PySide6.QtCore import QEvent, QPoint, Qt, Signal
from PySide6.QtGui import QAction, QColor, QGuiApplication, QIcon, QPalette, QShowEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QMenu,
    QPushButton,
    QSizePolicy,
    QSplitter,
    QStyle,
    QTabWidget,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from equipoise.extent import shape_text
from equipoise.session import Session
from equipoise.state import JobPhase, Run, State, find_job, find_run, find_scan
from equipoise.step_fields import step_title, summary
from equipoise.view.theme import colours
from equipoise_engine.protocol import ScanFacts
from equipoise_engine.recipe import Recipe, Selection

_KEY = Qt.ItemDataRole.UserRole
_KINDS = {"ct": "CT", "mri": "MRI"}
_AXES = {"ct": ("view", "row", "column"), "mri": ("slice", "coil", "ky", "kx")}
_STATES = {
    "counts": "counts (not corrected yet)",
    "transmission": "transmission (flat-field corrected)",
    "attenuation": "attenuation (logarithm taken)",
    "k-space": "k-space",
}


class ScanView(QWidget):
    """The open scans, the facts of the one that is selected, and the results."""

    change_wanted = Signal()
    """The user wants to change what was matched."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._state = State()

        self.scans = _tree("Open scans", ["Scan", "Format"])
        self.scans.setToolTip("The open scans; the controls act on the selected one")
        self.scans.currentItemChanged.connect(self._select)
        self.warnings = WarningBox()
        self.check_button = QPushButton("&Prepare scan …")
        self.check_button.setAccessibleName("Check what was guessed in Prepare scan")
        self.check_button.setToolTip("Check what the files do not say and was guessed, and say it better")
        self.check_button.clicked.connect(self.change_wanted)
        self.facts = _tree("Facts of the scan", ["Fact", "Value"])
        self.facts.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.matched = _tree("What was matched", ["Role", "Source", "Shape", "Reason"])
        self.matched.setToolTip("Which part of the file was taken for what, and why")
        tabs = QTabWidget()
        tabs.setDocumentMode(True)
        tabs.addTab(self.facts, "&Facts")
        self.change_button = QPushButton("&Change …")
        self.change_button.setAccessibleName("Change what was matched")
        self.change_button.setToolTip("Say which part of the files has which role, and what the files do not say")
        self.change_button.clicked.connect(self.change_wanted)
        matched = QWidget()
        inside = QVBoxLayout(matched)
        inside.setContentsMargins(0, 0, 0, 4)
        inside.setSpacing(4)
        inside.addWidget(self.matched, 1)
        inside.addWidget(self.change_button, 0, Qt.AlignmentFlag.AlignRight)
        tabs.addTab(matched, "&Matched")
        self.tabs = tabs

        self.runs = _tree("Results", ["Result", "Residual", "Seconds"])
        self.runs.setItemsExpandable(False)
        self.runs.setIndentation(8)
        self.runs.setAlternatingRowColors(False)
        self.runs.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.runs.header().setStretchLastSection(False)
        self.runs.header().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for number in (1, 2):
            self.runs.header().setSectionResizeMode(number, QHeaderView.ResizeMode.ResizeToContents)
        self.runs.setToolTip("Double-click or Enter shows a result in the active pane")
        self.runs.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.runs.customContextMenuRequested.connect(self._open_menu)
        self.runs.itemActivated.connect(lambda item, _column: self._show(item))
        self.show_action = QAction("Show in active pane", self.runs)
        self.show_action.triggered.connect(lambda: self._show(self.runs.currentItem()))
        self.forget_action = QAction("Forget this result", self.runs)
        self.forget_action.setShortcut(Qt.Key.Key_Delete)
        self.forget_action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        self.forget_action.triggered.connect(self._forget)
        self.runs.addActions([self.show_action, self.forget_action])
        self.runs.currentItemChanged.connect(self._enable)

        upper = QWidget()
        column = QVBoxLayout(upper)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(_heading("Scans"))
        column.addWidget(self.scans, 2)
        column.addWidget(self.warnings)
        column.addWidget(self.check_button, 0, Qt.AlignmentFlag.AlignRight)
        column.addWidget(tabs, 5)
        lower = QWidget()
        column = QVBoxLayout(lower)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(_heading("Results"))
        column.addWidget(self.runs)
        splitter = QSplitter(Qt.Orientation.Vertical)
        splitter.addWidget(upper)
        splitter.addWidget(lower)
        splitter.setStretchFactor(0, 3)
        splitter.setStretchFactor(1, 2)
        splitter.setChildrenCollapsible(False)
        splitter.setSizes([420, 280])
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.addWidget(splitter)
        self.show_change(self._state, session.state)
        self._show_facts(find_scan(session.state, session.state.scan))
        self._enable()

    # --- from the state to the widgets

    def show_change(self, old: State, new: State) -> None:
        """Bring what differs between two states onto the screen."""
        old, self._state = self._state, new
        if old.scans is not new.scans:
            self._show_scans()
        if old.scans is not new.scans or old.scan != new.scan:
            self._mark_scan()
        if find_scan(old, old.scan) is not find_scan(new, new.scan):
            self._show_facts(find_scan(new, new.scan))
        if old.runs is not new.runs or old.jobs is not new.jobs or old.scans is not new.scans:
            self._show_runs()
            self._enable()

    def _show_scans(self) -> None:
        self.scans.blockSignals(True)
        self.scans.clear()
        for facts in self._state.scans:
            item = QTreeWidgetItem([PurePath(facts.path).name, f"{_KINDS.get(facts.kind, '')} {facts.format}"])
            item.setData(0, _KEY, facts.scan)
            item.setToolTip(0, facts.path)
            item.setToolTip(1, facts.format)
            if facts.warnings:
                item.setIcon(0, self.style().standardIcon(QStyle.StandardPixmap.SP_MessageBoxWarning))
            self.scans.addTopLevelItem(item)
        self.scans.resizeColumnToContents(0)
        self.scans.blockSignals(False)

    def _mark_scan(self) -> None:
        self.scans.blockSignals(True)
        for row in range(self.scans.topLevelItemCount()):
            item = self.scans.topLevelItem(row)
            if item is not None and item.data(0, _KEY) == self._state.scan:
                self.scans.setCurrentItem(item)
                self.scans.scrollToItem(item)
        self.scans.blockSignals(False)

    def _show_facts(self, facts: ScanFacts | None) -> None:
        self.facts.clear()
        self.matched.clear()
        self.warnings.show_texts(facts.warnings if facts is not None else ())
        self.change_button.setEnabled(facts is not None)
        self.check_button.setVisible(facts is not None and bool(facts.guessed))
        if facts is None:
            return
        rows = [
            ("File", PurePath(facts.path).name),
            ("Format", facts.format),
            ("Kind", _KINDS.get(facts.kind, facts.kind)),
            ("Data state", _STATES.get(facts.state, facts.state)),
            ("Shape", _shape(facts.shape, _AXES.get(facts.kind, ()))),
            ("Slices", str(facts.slices)),
            *((name[:1].upper() + name[1:], value) for name, value in facts.geometry),
            *_taken_rows(facts),
            *step_rows(facts.recipe),
        ]
        if facts.memory is not None and facts.memory.text:
            rows.append(("Memory", facts.memory.text))
        for name, value in rows:
            item = QTreeWidgetItem([name, value])
            item.setToolTip(1, facts.path if name == "File" else value)
            self.facts.addTopLevelItem(item)
        for match in facts.matched:
            item = QTreeWidgetItem([match.role, match.source, _shape(match.shape), match.reason])
            for column, text in enumerate((match.role, match.source, _shape(match.shape), match.reason)):
                item.setToolTip(column, text)
            self.matched.addTopLevelItem(item)
        for tree in (self.facts, self.matched):
            for column in range(tree.columnCount() - 1):
                tree.resizeColumnToContents(column)

    def _show_runs(self) -> None:
        before = [self._key_of_row(row) for row in range(self.runs.topLevelItemCount())]
        wanted = [run.run for run in reversed(self._state.runs)]
        if before != wanted:
            current = self.runs.currentItem()
            selected = None if current is None else current.data(0, _KEY)
            self.runs.clear()
            for key in wanted:
                item = QTreeWidgetItem()
                item.setData(0, _KEY, key)
                for number in (1, 2):
                    item.setTextAlignment(number, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignTop)
                # the outcome has a line of its own below, over the whole width
                below = QTreeWidgetItem()
                below.setData(0, _KEY, key)
                item.addChild(below)
                self.runs.addTopLevelItem(item)
                below.setFirstColumnSpanned(True)
                item.setExpanded(True)
                if key == selected:
                    self.runs.setCurrentItem(item)
        for row, run in enumerate(reversed(self._state.runs)):
            item_of_run = self.runs.topLevelItem(row)
            if item_of_run is not None:
                self._show_run_row(item_of_run, run)

    def _show_run_row(self, item: QTreeWidgetItem, run: Run) -> None:
        words = outcome(self._state, run)
        residual = run.result.data_residual if run.result else (run.data_residuals or (float("nan"),))[-1]
        seconds = f"{run.result.seconds:.2f}" if run.result is not None else ""
        texts = (run.label, f"{residual:.3g}" if residual == residual else "", seconds)
        below = item.child(0)
        assert below is not None
        if (*(item.text(column) for column in range(3)), below.text(0)) == (*texts, words):
            return
        facts = find_scan(self._state, run.scan)
        name = PurePath(facts.path).name if facts is not None else "a scan that is closed"
        tip = "\n".join([f"{run.label} of {name}: {words}", *(": ".join(row) for row in step_rows(run.recipe))])
        for column, text in enumerate(texts):
            item.setText(column, text)
            item.setToolTip(column, tip)
        below.setText(0, words)
        below.setToolTip(0, tip)
        item.setData(0, Qt.ItemDataRole.AccessibleTextRole, tip.partition("\n")[0])
        doubtful = not run.held or (run.result is not None and run.result.outcome == "diverged")
        sign = self.style().standardIcon(QStyle.StandardPixmap.SP_MessageBoxWarning)
        item.setIcon(0, sign if doubtful else QIcon())

    def _key_of_row(self, row: int) -> str:
        item = self.runs.topLevelItem(row)
        return "" if item is None else str(item.data(0, _KEY))

    def _enable(self) -> None:
        item = self.runs.currentItem()
        run = None if item is None else find_run(self._state, str(item.data(0, _KEY)))
        job = None if run is None else find_job(self._state, run.job)
        self.show_action.setEnabled(run is not None)
        self.forget_action.setEnabled(run is not None and not (job is not None and job.active))

    # --- gestures

    def _select(self, item: QTreeWidgetItem | None) -> None:
        if item is not None:
            self._session.select_scan(str(item.data(0, _KEY)))

    def _show(self, item: QTreeWidgetItem | None) -> None:
        if item is not None:
            self._session.show_run(self._state.active_pane, str(item.data(0, _KEY)))

    def _forget(self) -> None:
        item = self.runs.currentItem()
        if item is not None:
            self._session.forget(str(item.data(0, _KEY)))

    def _open_menu(self, at: QPoint) -> None:
        if self.runs.itemAt(at) is None:
            return
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addActions([self.show_action, self.forget_action])
        menu.popup(self.runs.viewport().mapToGlobal(at))


class WarningBox(QFrame):
    """Sentences of warning on amber, each with a sign; hidden where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.setAccessibleName("Warnings")
        self.setAutoFillBackground(True)
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self._sign = QLabel()
        self._sign.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.text.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        row = QHBoxLayout(self)
        row.setContentsMargins(6, 4, 6, 4)
        row.addWidget(self._sign)
        row.addWidget(self.text, 1)
        self._colouring = False
        self._colour()
        self.hide()

    def show_texts(self, texts: tuple[str, ...]) -> None:
        """Show these sentences, one a line."""
        self.text.setText("\n".join(f"Warning: {text}" for text in texts))
        self.setAccessibleDescription(" ".join(texts))
        self.setVisible(bool(texts))

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        """Follow a palette that has changed meanwhile."""
        super().showEvent(event)
        self._colour()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and not self._colouring:
            self._colour()

    def _colour(self) -> None:
        self._colouring = True
        parent = self.parentWidget()
        around = QGuiApplication.palette() if parent is None else parent.palette()
        # only this role is our own, so that changes of the others still arrive
        palette = QPalette()
        palette.setColor(QPalette.ColorRole.Window, QColor(colours(around).warning))
        self.setPalette(palette)
        size = self.fontMetrics().height()
        icon = self.style().standardIcon(QStyle.StandardPixmap.SP_MessageBoxWarning)
        self._sign.setPixmap(icon.pixmap(size, size))
        self._colouring = False


def outcome(state: State, run: Run) -> str:
    """How a run ended, or where it stands, for people."""
    if run.is_reference and run.result is not None:
        count, rows, columns = run.result.shape
        said = f"{count} {'slice' if count == 1 else 'slices'} of {rows} × {columns}, {run.result.unit}"
        return said if run.held else "picture kept, data gone: open it again"
    if not run.held:
        return "picture kept, data gone: run again"
    if run.result is None:
        job = find_job(state, run.job)
        if job is None or not job.active:
            return {JobPhase.CANCELLED: "cancelled", JobPhase.FAILED: "failed"}.get(
                job.phase if job is not None else JobPhase.DONE, "no result"
            )
        return f"running, iterate {run.steps[-1]} of at most {run.total}" if run.steps else "running"
    count = run.result.iterations
    iterations = f"{count} iteration{'' if count == 1 else 's'}"
    match run.result.outcome:
        case "converged":
            return f"converged in {iterations}"
        case "max_steps":
            return f"reached the limit of {iterations}, not converged"
        case "diverged":
            return f"diverged after {iterations}, not to be trusted"
        case "direct":
            return "direct, no iterations"
        case "stopped":
            return f"stopped and kept after {iterations}"
        case other:
            return other


def _taken_rows(facts: ScanFacts) -> tuple[tuple[str, str], ...]:
    """Return what is taken of a scan, where that is not all."""
    if facts.recipe.selection == Selection() or not facts.full_shape:
        return ()
    return (("Selection", shape_text(facts.kind, facts.full_shape, facts.recipe.selection)),)


def step_rows(recipe: Recipe | None) -> tuple[tuple[str, str], ...]:
    """Return number and words of each step of a recipe."""
    steps = (recipe.steps or ()) if recipe is not None else ()
    return tuple((f"Step {n}", f"{step_title(step)}: {summary(step)}") for n, step in enumerate(steps, 1))


def _shape(shape: tuple[int, ...], axes: tuple[str, ...] = ()) -> str:
    numbers = " × ".join(str(n) for n in shape)
    return f"{numbers} ({', '.join(axes)})" if axes and len(axes) == len(shape) else numbers


def _heading(text: str) -> QLabel:
    label = QLabel(text)
    font = label.font()
    font.setBold(True)
    label.setFont(font)
    return label


def _tree(name: str, columns: list[str]) -> QTreeWidget:
    tree = QTreeWidget()
    tree.setAccessibleName(name)
    tree.setHeaderLabels(columns)
    tree.setRootIsDecorated(False)
    tree.setUniformRowHeights(True)
    tree.setAlternatingRowColors(True)
    tree.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    tree.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    tree.setTextElideMode(Qt.TextElideMode.ElideMiddle)
    tree.header().setStretchLastSection(True)
    tree.header().setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
    tree.setMinimumHeight(4 * tree.fontMetrics().lineSpacing())
    return tree
