"""The page of steps: how the numbers are prepared, in order, and what each step changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import qtawesome
from PySide6.QtCore import QEvent, Qt, QTimer, Slot
from PySide6.QtGui import QAction, QKeySequence, QShowEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSplitter,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from equipoise.extent import selected_shape, slices_of
from equipoise.session import Session
from equipoise.state import sentence
from equipoise.step_fields import step_title, summary
from equipoise.view.prepare.form import StepForm
from equipoise.view.prepare.index import IndexSlider
from equipoise.view.prepare.page import Page
from equipoise.view.prepare.picture import (
    PictureView,
    around_zero,
    compare,
    difference,
    legend,
    link,
    percentiles,
    shared_levels,
)
from equipoise.view.theme import colours
from equipoise_engine.protocol import Failed, Look, Needed, Pixels, ScanFacts, Seen
from equipoise_engine.recipe import CT_STEPS, MRI_STEPS, Recipe, Step, with_step

BEFORE, AFTER = "steps-before", "steps-after"
"""Purposes of the two pictures."""
WAIT_MS = 300
MOST_MARKED = 0.5
"""Share of changed pixels above which they are not marked."""
_KINDS = {"ct": CT_STEPS, "mri": MRI_STEPS}
_PICTURES = {
    "ct": (("Projection", "projection"), ("Sinogram", "sinogram")),
    "mri": (("k-space, log magnitude", "kspace"),),
}
_INDEX_NAMES = {"projection": "View", "sinogram": "Row", "kspace": "Slice"}


@dataclass(frozen=True)
class _Shown:
    """A picture before or after the step, what asked for it, and what its values are."""

    wish: Look
    pixels: Pixels
    unit: str
    axes: str
    """A caption that names the axes."""


class StepsPage(Page):
    """Lets the steps be chosen, ordered and set, and shows the data before and after the selected one."""

    title = "S&teps"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._facts: ScanFacts | None = None
        self._recipe = Recipe()
        self._steps: tuple[Step, ...] = ()
        self._usual: tuple[Step, ...] | None = None
        self._kind = ""
        self._path = ""
        self._before: _Shown | None = None
        self._after: _Shown | None = None
        self._wished: tuple[Look, Look] | None = None

        self.list = QListWidget()
        self.list.setAccessibleName("Steps in order")
        self.list.setToolTip("Alt+Up and Alt+Down move a step, Del removes it")
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.list.setSpacing(1)
        self.list.setMinimumHeight(110)
        self.list.currentRowChanged.connect(self._select)
        self.note = QLabel()
        self.note.setWordWrap(True)
        self.note.setProperty("muted", True)

        self.add_button = QToolButton()
        self.add_button.setText("A&dd")
        self.add_button.setAccessibleName("Add a step")
        self.add_button.setToolTip("Put another step where it usually stands")
        self.add_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.add_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.menu = QMenu(self.add_button)
        self.menu.setToolTipsVisible(True)
        self.add_button.setMenu(self.menu)
        self.remove_action = self._action("Remove", "Del", "Leave the selected step out", self._remove)
        self.up_action = self._action("Move up", "Alt+Up", "Do the selected step earlier", partial(self._move, -1))
        self.down_action = self._action("Move down", "Alt+Down", "Do the selected step later", partial(self._move, 1))
        buttons = QHBoxLayout()
        buttons.setSpacing(4)
        buttons.addWidget(self.add_button)
        for action in (self.remove_action, self.up_action, self.down_action):
            button = QToolButton()
            button.setDefaultAction(action)
            button.setAccessibleName(action.text())
            button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            buttons.addWidget(button)
        self.usual_button = QPushButton("&Usual steps")
        self.usual_button.setToolTip("Take the steps that such a scan usually needs")
        self.usual_button.clicked.connect(self._take_usual)
        buttons.addStretch(1)
        buttons.addWidget(self.usual_button)
        left = QWidget()
        column = QVBoxLayout(left)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.list, 1)
        column.addWidget(self.note)
        column.addLayout(buttons)

        self.heading = QLabel()
        font = self.heading.font()
        font.setBold(True)
        self.heading.setFont(font)
        self.form = StepForm()
        self.form.edited.connect(self._change)
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(8, 0, 4, 0)
        column.addWidget(self.heading)
        column.addWidget(self.form, 1)
        scroll = QScrollArea(widgetResizable=True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(inside)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        for part in (scroll.viewport(), inside):
            part.setAutoFillBackground(False)
        scroll.setMinimumWidth(260)
        upper = QSplitter(Qt.Orientation.Horizontal)
        upper.addWidget(left)
        upper.addWidget(scroll)
        upper.setStretchFactor(0, 1)
        upper.setStretchFactor(1, 1)
        upper.setChildrenCollapsible(False)

        self.what = QComboBox()
        self.what.setAccessibleName("Picture of the step")
        self.what.setToolTip("What is shown before and after the selected step")
        self.what.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.what.currentIndexChanged.connect(self._choose_what)
        self.coil = IndexSlider("Coil")
        self.coil.moved.connect(self._want)
        self.mark = QCheckBox("&Mark pixels")
        self.mark.setChecked(True)
        self.mark.setToolTip("Mark in the picture after the step what changed, is negative, or is no number")
        self.mark.toggled.connect(self._show_marks)
        self.legend = QLabel()
        self.legend.setTextFormat(Qt.TextFormat.RichText)
        self.legend.setWordWrap(True)
        self.legend.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.words = QLabel()
        self.words.setAccessibleName("Pixels that the step changed")
        self.words.setWordWrap(True)
        self.words.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        row = QHBoxLayout()
        row.addWidget(self.what)
        row.addWidget(self.mark)
        row.addSpacing(8)
        row.addWidget(self.legend, 1)
        self.before = PictureView("Before")
        self.after = PictureView("After")
        self.change = PictureView("Difference", "diverging")
        self.pictures = (self.before, self.after, self.change)
        link(self.pictures)
        panes = QHBoxLayout()
        panes.setSpacing(8)
        for picture in self.pictures:
            panes.addWidget(picture, 1)
        self.index = IndexSlider("View")
        self.index.moved.connect(self._want)
        lower = QWidget()
        column = QVBoxLayout(lower)
        column.setContentsMargins(0, 4, 0, 0)
        column.addLayout(row)
        column.addLayout(panes, 1)
        column.addWidget(self.words)
        column.addWidget(self.index)
        column.addWidget(self.coil)

        splitter = QSplitter(Qt.Orientation.Vertical)
        splitter.addWidget(upper)
        splitter.addWidget(lower)
        splitter.setStretchFactor(0, 2)
        splitter.setStretchFactor(1, 3)
        splitter.setChildrenCollapsible(False)
        splitter.setSizes([260, 380])
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.addWidget(splitter)
        self._waiting = QTimer(self, singleShot=True, interval=WAIT_MS)
        self._waiting.timeout.connect(self._ask)
        # turns of the event loop of their own: large pictures take a moment
        self._comparing = QTimer(self, singleShot=True, interval=0)
        self._comparing.timeout.connect(self._compare)
        self._marking = QTimer(self, singleShot=True, interval=0)
        self._marking.timeout.connect(self._show_marks)
        self._draw_icons()
        self._enable()

    # --- what to show

    def show_draft(self, facts: ScanFacts | None, needed: Needed | None, recipe: Recipe) -> None:
        """Show a recipe."""
        path = facts.path if facts is not None else needed.path if needed is not None else ""
        another = path != self._path
        if another:
            self._path, self._usual = path, None
        if facts is not None:
            asked = self.session.asked_recipe(facts.path)
            if asked is not None and asked.steps is None and facts.recipe.steps is not None:
                self._usual = facts.recipe.steps
        self._facts, self._recipe = facts, recipe
        self._set_kind(facts.kind if facts is not None else "", another)
        known = recipe.steps if recipe.steps is not None else self._usual
        self._steps = known or ()
        self._show_steps()
        if known is None:
            self.note.setText("The usual steps of this scan; they are listed once it is open.")
        elif not known:
            self.note.setText("No steps: the numbers are taken as they were read.")
        self.note.setVisible(not known)
        if another or not known:
            empty = "No step to show" if facts is not None else "Shown once the scan is open"
            self._clear_pictures("" if known else empty)
        self._want()

    def _clear_pictures(self, hint: str) -> None:
        self._before = self._after = self._wished = None
        for picture in self.pictures:
            picture.set_picture(None, hint=hint)
            picture.set_problem("")
        self.words.clear()

    def show_seen(self, purpose: str, seen: Seen, pixels: Pixels) -> None:
        """Show the picture before or after the selected step."""
        if self._wished is None or purpose not in (BEFORE, AFTER):
            return
        picture, wish = (self.before, self._wished[0]) if purpose == BEFORE else (self.after, self._wished[1])
        if (seen.path, seen.what, seen.index, seen.stage) != (wish.path, wish.what, wish.index, wish.stage):
            return
        self._count(seen)
        picture.set_problem("")
        # what both pictures have in common stands below them
        unit = seen.caption.rpartition("), ")[2]
        picture.set_picture(pixels, unit, axes=seen.caption, kspace=self._kind == "mri")
        if purpose == BEFORE:
            self._before = _Shown(wish, pixels, unit, seen.caption)
        else:
            self._after = _Shown(wish, pixels, unit, seen.caption)
        self._comparing.start()

    def show_failure(self, purpose: str, failed: Failed) -> None:
        """Say why a picture could not be made."""
        text = sentence(failed.message, failed.hint)
        if self._wished is None:
            return
        if purpose == BEFORE:
            self.before.set_problem(text)
        elif purpose == AFTER:
            self.after.set_problem(text)

    def _set_kind(self, kind: str, another: bool) -> None:
        if kind == self._kind and not another and self.menu.actions():
            self._enable_menu()
            self._place_index(middle=False)
            return
        self._kind = kind
        self.menu.clear()
        for step in _KINDS.get(kind, CT_STEPS + MRI_STEPS):
            action = self.menu.addAction(step_title(step))
            action.setToolTip((step.__doc__ or "").strip().partition("\n")[0])
            action.setData(step)
            action.triggered.connect(partial(self._add, step))
        self.what.blockSignals(True)
        self.what.clear()
        for text, value in _PICTURES.get(kind, ()):
            self.what.addItem(text, value)
        if self._facts is not None and kind == "ct" and self._facts.shape[1] == 1:
            self.what.setCurrentIndex(1)
        self.what.setVisible(self.what.count() > 1)
        self.what.blockSignals(False)
        self.legend.setText(legend(kspace=kind == "mri"))
        self.coil.set_count(self._facts.shape[1] if kind == "mri" and self._facts is not None else 0)
        self._place_index(middle=True)
        self._enable_menu()

    def _enable_menu(self) -> None:
        there = {type(step) for step in self._steps}
        for action in self.menu.actions():
            action.setEnabled(action.data() not in there)

    def _show_steps(self) -> None:
        row = max(0, min(self.list.currentRow(), len(self._steps) - 1))
        self.list.blockSignals(True)
        while self.list.count() > len(self._steps):
            self.list.takeItem(self.list.count() - 1)
        for number, step in enumerate(self._steps):
            if number == self.list.count():
                self.list.addItem(QListWidgetItem())
            item = self.list.item(number)
            item.setText(f"{number + 1}.  {step_title(step)}\n     {summary(step)}")
            item.setToolTip(summary(step))
            item.setData(Qt.ItemDataRole.AccessibleTextRole, f"Step {number + 1}: {step_title(step)}, {summary(step)}")
        self.list.setCurrentRow(row if self._steps else -1)
        self.list.blockSignals(False)
        self._enable_menu()
        self._show_form()
        self._enable()

    def _show_form(self) -> None:
        row = self.list.currentRow()
        step = self._steps[row] if 0 <= row < len(self._steps) else None
        self.heading.setText("" if step is None else step_title(step))
        self.form.show_step(step)

    def _enable(self) -> None:
        row, count = self.list.currentRow(), len(self._steps)
        self.remove_action.setEnabled(0 <= row < count)
        self.up_action.setEnabled(0 < row < count)
        self.down_action.setEnabled(0 <= row < count - 1)
        self.usual_button.setEnabled(self._recipe.steps is not None and self._recipe.steps != self._usual)

    def _place_index(self, middle: bool) -> None:
        """Offer the views or slices that the recipe takes of the scan."""
        what, facts = str(self.what.currentData() or ""), self._facts
        self.index.set_name(_INDEX_NAMES.get(what, "Slice"))
        if facts is None or not what:
            self.index.set_count(0)
            return
        shape = selected_shape(facts.kind, facts.full_shape, self._recipe.selection)
        slices = slices_of(facts.kind, facts.full_shape, self._recipe.selection)
        self.index.set_count(shape[0] if what == "projection" else slices)
        if middle:
            self.index.set_value(0 if what == "projection" else slices // 2)

    def _count(self, seen: Seen) -> None:
        if seen.what == self.what.currentData() and self.index.number.maximum() != seen.count - 1:
            self.index.set_count(seen.count)

    @Slot()
    def _compare(self) -> None:
        before, after = self._before, self._after
        if before is None or after is None or self._wished != (before.wish, after.wish):
            return
        levels = [percentiles(shown.pixels, 0.5, 99.5) for shown in (before, after)]
        common = shared_levels(*levels) if before.unit == after.unit else None
        self.before.set_levels(*(common or levels[0]))
        self.after.set_levels(*(common or levels[1]))
        change = difference(before.pixels, after.pixels)
        if change is None:
            self.change.set_picture(None, hint="The step changes the size of the picture")
        else:
            low, high = around_zero(change)
            differs = bool((change > 0).any() or (change < 0).any())
            span = f"± {high:.3g}" if differs else "none"
            caption = span if before.unit == after.unit else f"{span}, of different units"
            self.change.set_picture(change, caption, axes=before.axes, kspace=self._kind == "mri")
            self.change.set_levels(low, high)
        self._marking.start()

    @Slot()
    def _show_marks(self) -> None:
        before, after = self._before, self._after
        self.legend.setVisible(self.mark.isChecked())
        if before is None or after is None:
            self.words.setText("")
            return
        overlay = compare(before.pixels, after.pixels)
        words = overlay.words(kspace=self._kind == "mri")
        self.words.setText(words)
        self.words.setToolTip(words)
        if overlay.changed is not None and overlay.changed.mean() > MOST_MARKED:
            # marks on everything would only hide the picture
            self.words.setText(f"{words}; so many changes are not marked")
            overlay = replace(overlay, changed=None)
        self.after.set_overlay(overlay if self.mark.isChecked() else None)

    # --- asking for pictures

    @Slot()
    def _choose_what(self) -> None:
        self._place_index(middle=True)
        self._before = self._after = None
        self._want()

    @Slot()
    def _want(self) -> None:
        if self.isVisible():
            self._waiting.start()

    @Slot()
    def _ask(self) -> None:
        row, what = self.list.currentRow(), str(self.what.currentData() or "")
        if not self._path or not what or not 0 <= row < len(self._steps):
            return
        before, after = (
            Look(
                path=self._path,
                recipe=msgspec.structs.replace(self._recipe, steps=self._steps),
                what=what,
                index=self.index.value(),
                coil=self.coil.value(),
                stage=row + done,
            )
            for done in (0, 1)
        )
        self._wished = (before, after)
        self.session.look(BEFORE, before)
        self.session.look(AFTER, after)

    # --- gestures

    def _edit(self, steps: tuple[Step, ...]) -> None:
        self.edited.emit(msgspec.structs.replace(self._recipe, steps=steps))

    def _select(self, row: int) -> None:
        self._show_form()
        self._enable()
        self._want()

    def _add(self, kind: type[Step]) -> None:
        steps = with_step(self._steps, kind())
        self._edit(steps)
        self.list.setCurrentRow(next(n for n, step in enumerate(steps) if type(step) is kind))

    def _remove(self) -> None:
        row = self.list.currentRow()
        if 0 <= row < len(self._steps):
            self._edit((*self._steps[:row], *self._steps[row + 1 :]))

    def _move(self, by: int) -> None:
        row = self.list.currentRow()
        other = row + by
        if 0 <= row < len(self._steps) and 0 <= other < len(self._steps):
            steps = list(self._steps)
            steps[row], steps[other] = steps[other], steps[row]
            self._edit(tuple(steps))
            self.list.setCurrentRow(other)

    def _change(self, step: Step) -> None:
        row = self.list.currentRow()
        if 0 <= row < len(self._steps):
            self._edit((*self._steps[:row], step, *self._steps[row + 1 :]))

    @Slot()
    def _take_usual(self) -> None:
        self.edited.emit(msgspec.structs.replace(self._recipe, steps=self._usual))

    def _action(self, text: str, keys: str, tip: str, gesture: Callable[[], None]) -> QAction:
        action = QAction(text, self)
        action.setShortcut(QKeySequence(keys))
        action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        action.setToolTip(f"{tip} ({keys})")
        action.triggered.connect(lambda: gesture())
        self.list.addAction(action)
        return action

    # --- events

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        """Ask for the pictures that were not wanted while nobody saw them."""
        super().showEvent(event)
        self._want()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Draw the icons anew in the colours of another palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and hasattr(self, "usual_button"):
            self._draw_icons()

    def _draw_icons(self) -> None:
        chosen = colours(self.palette())
        icon = partial(qtawesome.icon, color=chosen.text, color_disabled=chosen.disabled)
        self.add_button.setIcon(icon("fa5s.plus"))
        self.remove_action.setIcon(icon("fa5s.trash-alt"))
        self.up_action.setIcon(icon("fa5s.arrow-up"))
        self.down_action.setIcon(icon("fa5s.arrow-down"))
