"""The page of raw data: what was measured, before any step."""

from __future__ import annotations

import math

import numpy as np
from PySide6.QtCore import QTimer, Slot
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout

from equipoise.extent import selected_shape, slices_of
from equipoise.session import Session
from equipoise.state import sentence
from equipoise.view.levels import COLOUR_MAPS
from equipoise.view.prepare.index import IndexSlider
from equipoise.view.prepare.page import Page
from equipoise.view.prepare.picture import PictureView, link, percentiles
from equipoise_engine.protocol import Failed, Look, Needed, Pixels, ScanFacts, Seen
from equipoise_engine.recipe import Recipe

RAW = "raw"
"""Purpose of the picture."""
WAIT_MS = 300
PICTURES = {
    "ct": (("Projection", "projection"), ("Sinogram", "sinogram")),
    "mri": (
        ("k-space, log magnitude", "kspace"),
        ("k-space, phase", "phase"),
        ("Sampling", "sampling"),
        ("Coil map, magnitude", "coil-magnitude"),
        ("Coil map, phase", "coil-phase"),
        ("Coil map, eigenvalue", "coil-eigenvalue"),
        ("Coil noise, correlation", "noise"),
    ),
}
"""Names for people and values of `Look.what`."""
_INDEX_NAMES = {"projection": "View", "sinogram": "Row"}
_PER_COIL = frozenset({"kspace", "phase", "coil-magnitude", "coil-phase"})
_KSPACE = frozenset({"kspace", "phase"})
_PHASES = frozenset({"phase", "coil-phase"})
_SPANS = (
    ("Percentiles 1 to 99", (1.0, 99.0)),
    ("Percentiles 0.1 to 99.9", (0.1, 99.9)),
    ("Percentiles 5 to 95", (5.0, 95.0)),
    ("Smallest to largest", (0.0, 100.0)),
)


class RawPage(Page):
    """Shows what was measured, with the value under the mouse."""

    title = "Ra&w data"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._facts: ScanFacts | None = None
        self._recipe = Recipe()
        self._path = ""
        self._kind = ""
        self._shown = ""

        self.picture = PictureView("Raw data")
        link((self.picture,))
        self.what = QComboBox()
        self.what.setAccessibleName("Raw data")
        self.what.setToolTip("What is shown of the measurement")
        self.what.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        # as wide as its longest name; the least width that Qt keeps is that of the empty box
        self.what.setSizePolicy(QSizePolicy.Policy.Minimum, QSizePolicy.Policy.Fixed)
        self.what.currentIndexChanged.connect(self._choose)
        self.span = QComboBox()
        for text, span in _SPANS:
            self.span.addItem(text, span)
        self.span.setAccessibleName("Levels")
        self.span.setToolTip("Values that are shown darkest and brightest; phases always from −π to π")
        self.span.currentIndexChanged.connect(self._level)
        self.maps = QComboBox()
        self.maps.addItems(COLOUR_MAPS)
        self.maps.setAccessibleName("Colour map of the raw data")
        self.maps.setToolTip("Colour map; all of them rise evenly in lightness")
        self.maps.currentTextChanged.connect(self.picture.set_shades)
        row = QHBoxLayout()
        for text, box in (("S&how", self.what), ("L&evels", self.span), ("C&olours", self.maps)):
            label = QLabel(text)
            label.setBuddy(box)
            row.addWidget(label)
            row.addWidget(box)
            row.addSpacing(8)
        row.addStretch(1)
        self.words = QLabel()
        self.words.setAccessibleName("Values of the picture")
        self.words.setProperty("muted", True)
        self.index = IndexSlider("View")
        self.index.moved.connect(self._want)
        self.coil = IndexSlider("Coil")
        self.coil.moved.connect(self._want)
        column = QVBoxLayout(self)
        column.setContentsMargins(8, 8, 8, 8)
        column.addLayout(row)
        column.addWidget(self.picture, 1)
        column.addWidget(self.words)
        column.addWidget(self.index)
        column.addWidget(self.coil)
        self._waiting = QTimer(self, singleShot=True, interval=WAIT_MS)
        self._waiting.timeout.connect(self._ask)

    def show_draft(self, facts: ScanFacts | None, needed: Needed | None, recipe: Recipe) -> None:
        """Show the data as this recipe reads them."""
        path = facts.path if facts is not None else needed.path if needed is not None else ""
        kind = facts.kind if facts is not None else ""
        another = path != self._path
        self._path, self._facts, self._recipe = path, facts, recipe
        if another:
            self.picture.set_picture(None, hint="" if facts is not None else "Shown once the scan is open")
            self.picture.set_problem("")
            self.words.setText("")
        if another or kind != self._kind:
            self._kind = kind
            self.what.blockSignals(True)
            self.what.clear()
            for text, value in PICTURES.get(kind, ()):
                self.what.addItem(text, value)
            if facts is not None and kind == "ct" and facts.shape[1] == 1:
                self.what.setCurrentIndex(1)
            self.what.blockSignals(False)
            self._place_sliders(middle=True)
        else:
            self._place_sliders(middle=False)
        self._want()

    def show_seen(self, purpose: str, seen: Seen, pixels: Pixels) -> None:
        """Show the picture that was asked for."""
        if purpose != RAW or seen.path != self._path or seen.what != self.what.currentData():
            return
        if self.index.number.maximum() != max(0, seen.count - 1):
            self.index.set_count(seen.count)
        if seen.what != self._shown:
            self.picture.set_picture(None)
        self._shown = seen.what
        self.picture.set_problem("")
        self.picture.set_picture(pixels, seen.caption, kspace=seen.what in _KSPACE)
        self._level()
        self.words.setText(_words(pixels, negatives=self._kind == "ct", missing=seen.what not in _KSPACE))

    def show_failure(self, purpose: str, failed: Failed) -> None:
        """Say why the picture could not be made."""
        if purpose == RAW:
            self.picture.set_problem(sentence(failed.message, failed.hint))

    def _place_sliders(self, middle: bool) -> None:
        what, facts = str(self.what.currentData() or ""), self._facts
        self.index.set_name(_INDEX_NAMES.get(what, "Slice"))
        if facts is None or not what:
            self.index.set_count(0)
            self.coil.set_count(0)
            return
        shape = selected_shape(facts.kind, facts.full_shape, self._recipe.selection)
        slices = slices_of(facts.kind, facts.full_shape, self._recipe.selection)
        self.index.set_count(shape[0] if what == "projection" else slices)
        if middle:
            self.index.set_value(0 if what == "projection" else slices // 2)
        self.coil.set_count(facts.shape[1] if what in _PER_COIL else 0)

    @Slot()
    def _choose(self) -> None:
        self._place_sliders(middle=True)
        self._want()

    @Slot()
    def _level(self) -> None:
        pixels = self.picture.pixels()
        if pixels is None:
            return
        if self._shown in _PHASES:
            self.picture.set_levels(-math.pi, math.pi)
        else:
            self.picture.set_levels(*percentiles(pixels, *self.span.currentData()))

    @Slot()
    def _want(self) -> None:
        if self.isVisible():
            self._waiting.start()

    @Slot()
    def _ask(self) -> None:
        what = str(self.what.currentData() or "")
        if self._path and what:
            self.session.look(
                RAW,
                Look(
                    path=self._path,
                    recipe=self._recipe,
                    what=what,
                    index=self.index.value(),
                    coil=self.coil.value(),
                    stage=0,
                ),
            )

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        """Ask for the picture that was not wanted while nobody saw it."""
        super().showEvent(event)
        self._want()


def _words(pixels: Pixels, negatives: bool, missing: bool) -> str:
    """Say between what the values of a picture lie."""
    finite = pixels[np.isfinite(pixels)]
    words = f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "no numbers"
    if negatives and (count := int(np.count_nonzero(finite < 0))):
        words += f", {count} negative"
    if count := pixels.size - finite.size:
        words += f", {count} {'NaN' if missing else 'empty'}"
    return words
