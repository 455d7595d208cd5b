"""The page that chooses a part of the scan, and the page of the rotation centre."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.state import Engine, EnginePhase, Job, JobPhase, State
from equipoise.view.prepare.centre import CentrePage, normalised
from equipoise.view.prepare.picture import PictureView
from equipoise.view.prepare.selection import SelectionPage
from equipoise_engine.protocol import (
    CentreEstimate,
    CentreFound,
    Failed,
    FindCentre,
    Look,
    MatchFact,
    MemoryFacts,
    ScanFacts,
    Seen,
)
from equipoise_engine.recipe import Known, NegativeLog, Recipe, Selection, Span

CT = ScanFacts(
    scan="ct",
    path="/data/tooth.h5",
    kind="ct",
    format="HDF5",
    state="counts",
    shape=(90, 40, 64),
    slices=40,
    geometry=(("beam", "parallel"),),
    matched=(MatchFact(role="rotation centre", source="found in the projections", shape=(), reason="opposite views"),),
    warnings=(),
    methods=("fbp",),
    recipe=Recipe(known=Known(centre_px=31.25), steps=(NegativeLog(),)),
    full_shape=(90, 40, 64),
    memory=MemoryFacts(
        host_bytes=1, host_free=2, device_bytes=0, device_free=0, disk_bytes=1, text="Needs 1 of 2 bytes."
    ),
)
MRI = msgspec.structs.replace(
    CT, kind="mri", shape=(5, 8, 64, 48), full_shape=(5, 8, 64, 48), slices=5, matched=(), recipe=Recipe()
)


class Listener(Session):
    """A session that notes what it would ask of the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[tuple[str, Look]] = []
        self.searches: list[FindCentre] = []

    def look(self, purpose: str, wish: Look) -> None:
        self.looks.append((purpose, wish))

    def find_centre(self, wish: FindCentre) -> int | None:
        self.searches.append(wish)
        return 7


@pytest.fixture
def session(qtbot: QtBot) -> Iterator[Listener]:
    session = Listener()
    session._set(State(engine=Engine(phase=EnginePhase.READY), scans=(CT,), scan="ct"))
    yield session
    session.deleteLater()


def show(qtbot: QtBot, page: QWidget) -> None:
    qtbot.addWidget(page)
    page.resize(820, 720)
    page.show()
    qtbot.waitExposed(page)


@pytest.fixture
def edits(request: pytest.FixtureRequest) -> list[Recipe]:
    return []


@pytest.fixture
def page(qtbot: QtBot, session: Listener, edits: list[Recipe]) -> SelectionPage:
    page = SelectionPage(session)
    show(qtbot, page)

    def take(recipe: Recipe) -> None:
        edits.append(recipe)
        page.show_draft(page._facts, None, recipe)

    page.edited.connect(take)
    page.show_draft(CT, None, CT.recipe)
    answer(page, session)
    return page


@pytest.fixture
def centre(qtbot: QtBot, session: Listener, edits: list[Recipe]) -> CentrePage:
    page = CentrePage(session)
    show(qtbot, page)

    def take(recipe: Recipe) -> None:
        edits.append(recipe)
        page.show_draft(page._facts, None, recipe)

    page.edited.connect(take)
    page.show_draft(CT, None, CT.recipe)
    answer(page, session)
    return page


def answer(page: SelectionPage | CentrePage, session: Listener, value: float = 1.0) -> None:
    """Answer the last look of a page."""
    purpose, wish = session.looks[-1]
    shape = {"projection": (40, 64), "sinogram": (90, 64)}.get(wish.what, (64, 64))
    pixels = np.full(shape, value, np.float32)
    page.show_seen(purpose, seen(wish), pixels)


def seen(wish: Look) -> Seen:
    return Seen(
        path=wish.path,
        what=wish.what,
        index=wish.index,
        coil=0,
        stage=wish.stage,
        caption="(row, column)",
        count=90,
        low=0.0,
        high=1.0,
    )


def on_screen(picture: PictureView, x: float, y: float) -> QPoint:
    """Where a point of a picture lies in its view."""
    place: QPoint = picture.view.mapFromScene(picture.box.mapViewToScene(QPointF(x, y)))
    return place


def drag(qtbot: QtBot, picture: PictureView, start: tuple[float, float], end: tuple[float, float]) -> None:
    port = picture.view.viewport()
    one, other = on_screen(picture, *start), on_screen(picture, *end)
    qtbot.mouseMove(port, one)
    qtbot.mousePress(port, Qt.MouseButton.LeftButton, pos=one)
    for share in (0.25, 0.5, 0.75, 1.0):
        qtbot.mouseMove(port, one + (other - one) * share)
        qtbot.wait(20)
    qtbot.mouseRelease(port, Qt.MouseButton.LeftButton, pos=other)


# --- selection


def test_the_picture_is_the_raw_one_of_the_whole_scan(page: SelectionPage, session: Listener) -> None:
    page.show_draft(CT, None, Recipe(selection=Selection(rows=Span(first=3))))
    purpose, wish = session.looks[-1]
    assert purpose == "selection"
    assert (wish.what, wish.stage, wish.index) == ("projection", 0, 0)
    assert wish.recipe.selection == Selection()
    # nobody needs the axis for this; it must not be searched for
    assert wish.recipe.known.centre_px == 31.25
    count = len(session.looks)
    page.show_draft(CT, None, Recipe(selection=Selection(rows=Span(first=5))))
    assert len(session.looks) == count


def test_the_rectangle_is_dragged_and_the_numbers_follow(
    qtbot: QtBot, page: SelectionPage, edits: list[Recipe]
) -> None:
    assert page.frame.isVisible()
    drag(qtbot, page.picture, (64, 20), (48, 20))
    assert len(edits) == 1
    assert edits[-1].selection == Selection(columns=Span(first=0, last=48))
    assert page.last["columns"].value() == 47
    # inside the rectangle the whole of it is moved
    drag(qtbot, page.picture, (24, 20), (32, 20))
    assert edits[-1].selection.columns == Span(first=8, last=56)
    assert edits[-1].selection.rows == Span()
    assert page.taken.text() == "90 views, 40 rows, 48 of 64 columns: 75 % of the data"


def test_the_numbers_move_the_rectangle(qtbot: QtBot, page: SelectionPage, edits: list[Recipe]) -> None:
    for field, text in ((page.first["rows"], "10"), (page.last["rows"], "29"), (page.step["views"], "3")):
        field.setFocus()
        field.selectAll()
        qtbot.keyClicks(field, text)
        qtbot.keyClick(field, Qt.Key.Key_Return)
    assert edits[-1].selection == Selection(rows=Span(first=10, last=30), views=Span(step=3))
    assert (page.frame.pos().y(), page.frame.size().y()) == (10, 20)
    page.first["rows"].setValue(35)
    assert edits[-1].selection.rows == Span(first=35, last=36)
    qtbot.mouseClick(page.all_button, Qt.MouseButton.LeftButton)
    assert edits[-1].selection == Selection()


def test_bins_and_memory_are_told(page: SelectionPage, edits: list[Recipe]) -> None:
    assert page.memory.text() == "Memory: Needs 1 of 2 bytes"
    page.bin.setValue(2)
    assert edits[-1].selection.bin == 2
    assert page.taken.text() == "90 views, 20 of 40 rows, 32 of 64 columns: 25 % of the data"
    assert page.memory.text() == "Memory: Needs 1 of 2 bytes (before this change; estimated again after Apply)"


def test_the_rectangle_takes_views_on_a_sinogram(
    qtbot: QtBot, page: SelectionPage, session: Listener, edits: list[Recipe]
) -> None:
    page.what.setFocus()
    qtbot.keyClick(page.what, Qt.Key.Key_Down)
    assert session.looks[-1][1].what == "sinogram"
    answer(page, session)
    drag(qtbot, page.picture, (32, 90), (32, 60))
    assert edits[-1].selection == Selection(views=Span(first=0, last=60))


def test_an_mri_scan_has_slices_only(page: SelectionPage, session: Listener, edits: list[Recipe]) -> None:
    page.show_draft(msgspec.structs.replace(MRI, path="/data/brain.h5"), None, Recipe())
    assert session.looks[-1][1].what == "image"
    answer(page, session)
    assert not page.frame.isVisible()
    assert not page.first["columns"].isVisible()
    assert not page.bin.isVisible()
    page.first["rows"].setValue(2)
    assert edits[-1].selection == Selection(rows=Span(first=2))
    assert page.taken.text() == "3 of 5 slices, 8 coils, 64 lines, 48 samples: 60 % of the data"


def test_a_picture_that_fails_says_why_and_is_asked_for_again(page: SelectionPage, session: Listener) -> None:
    page.show_failure("selection", Failed(kind="bad-input", message="tooth.h5: is damaged", hint="Copy it again."))
    assert page.picture.problem.text() == "⚠ tooth.h5: is damaged. Copy it again."
    assert page.picture.pixels() is not None
    count = len(session.looks)
    page.show_draft(CT, None, CT.recipe)
    assert len(session.looks) == count + 1


# --- rotation centre

POSITIONS = tuple(float(x) for x in range(20, 41))
FOUND = CentreFound(
    path=CT.path,
    centre_px=30.5,
    confidence=0.4,
    text="Two of three methods agree.",
    estimates=(
        CentreEstimate(
            method="opposite views",
            centre_px=30.5,
            confidence=0.9,
            at_edge=False,
            text="48 pairs",
            positions_px=POSITIONS,
            metric=tuple((x - 30.5) ** 2 for x in POSITIONS),
        ),
        CentreEstimate(
            method="sharpness",
            centre_px=40.0,
            confidence=0.2,
            at_edge=True,
            text="entropy",
            positions_px=POSITIONS,
            metric=tuple(-x for x in POSITIONS),
        ),
        CentreEstimate(method="centre of mass", centre_px=29.0, confidence=0.6, at_edge=False, text="a sinusoid"),
    ),
)


def test_the_axis_is_dragged_on_the_picture(qtbot: QtBot, centre: CentrePage, edits: list[Recipe]) -> None:
    assert centre.mark.word.text() == "found"
    assert centre.centre.value() == 31.25
    drag(qtbot, centre.picture, (31.75, 20), (40.75, 20))
    assert edits[-1].known.centre_px == pytest.approx(40.25, abs=0.2)
    assert centre.mark.word.text() == "given"
    assert edits[-1].steps == (NegativeLog(),)


def test_the_axis_stays_on_the_detector(qtbot: QtBot, centre: CentrePage, edits: list[Recipe]) -> None:
    centre.centre.setFocus()
    centre.centre.selectAll()
    qtbot.keyClicks(centre.centre, "400")
    qtbot.keyClick(centre.centre, Qt.Key.Key_Return)
    assert all(0 <= (edit.known.centre_px or 0) <= 63 for edit in edits)
    assert centre.centre.maximum() == centre.range_last.maximum() == 63


def test_the_axis_is_set_in_tenths_and_given_back(qtbot: QtBot, centre: CentrePage, edits: list[Recipe]) -> None:
    centre.centre.setFocus()
    qtbot.keyClick(centre.centre, Qt.Key.Key_Up)
    assert edits[-1].known.centre_px == pytest.approx(31.35)
    assert centre.line.value() == pytest.approx(31.85)
    qtbot.mouseClick(centre.auto_button, Qt.MouseButton.LeftButton)
    assert edits[-1].known.centre_px is None


def test_the_methods_are_told_with_their_confidence_in_words(
    qtbot: QtBot, centre: CentrePage, session: Listener, edits: list[Recipe]
) -> None:
    qtbot.mouseClick(centre.estimate_button, Qt.MouseButton.LeftButton)
    assert session.searches[-1] == FindCentre(path=CT.path, recipe=CT.recipe)
    assert not centre.estimate_button.isEnabled()
    session.centre_found.emit(FOUND)
    session._set(State(engine=Engine(phase=EnginePhase.READY), jobs=(Job(7, "centre", "", phase=JobPhase.DONE),)))
    assert centre.estimate_button.isEnabled()
    rows = []
    for number in range(centre.methods.topLevelItemCount()):
        item = centre.methods.topLevelItem(number)
        assert item is not None
        rows.append([item.text(column) for column in range(4)])
    assert rows == [
        ["Vote of all", "30.50", "low, check it (0.40)", ""],
        ["opposite views", "30.50", "high (0.90)", "48 pairs"],
        ["sharpness", "40.00", "low, check it (0.20)", "at the edge of what was looked at"],
        ["centre of mass", "29.00", "fair (0.60)", "a sinusoid"],
    ]
    assert centre.warning.isVisible()
    assert centre.said.text() == "Two of three methods agree."
    qtbot.mouseClick(centre.use_button, Qt.MouseButton.LeftButton)
    assert edits[-1].known.centre_px == 30.5


def test_the_curves_go_from_0_at_the_best_to_1(centre: CentrePage, session: Listener) -> None:
    session.centre_found.emit(FOUND)
    x, y = normalised(FOUND.estimates[0])
    assert x.tolist() == list(POSITIONS)
    assert (y.min(), y.max()) == (0.0, 1.0)
    assert normalised(FOUND.estimates[2])[0].size == 0
    names = [label.text for _, label in centre.plot.getPlotItem().legend.items]
    assert names == ["opposite views", "sharpness"]


def test_a_search_that_fails_says_why(qtbot: QtBot, centre: CentrePage, session: Listener) -> None:
    centre.range.setCurrentIndex(1)
    centre.range.activated.emit(1)
    centre.range_first.setValue(20)
    centre.range_last.setValue(40)
    qtbot.mouseClick(centre.estimate_button, Qt.MouseButton.LeftButton)
    assert (session.searches[-1].first_px, session.searches[-1].last_px) == (20, 40)
    job = Job(7, "centre", "", phase=JobPhase.FAILED, message="tooth.h5: no opposite views", hint="Give the centre.")
    session._set(State(engine=Engine(phase=EnginePhase.READY), jobs=(job,)))
    assert centre.said.text() == "tooth.h5: no opposite views. Give the centre."
    assert centre.estimate_button.isEnabled()


def test_images_of_several_centres_are_asked_for_one_by_one_and_one_is_taken(
    qtbot: QtBot, centre: CentrePage, session: Listener, edits: list[Recipe]
) -> None:
    centre.tabs.setCurrentIndex(1)
    centre.spacing.setValue(2.0)
    session.looks.clear()
    qtbot.mouseClick(centre.compare_button, Qt.MouseButton.LeftButton)
    for number in range(5):
        assert len(session.looks) == number + 1
        if number == 1:
            purpose = session.looks[-1][0]
            centre.show_failure(purpose, Failed(kind="bad-input", message="no image"))
        else:
            answer(centre, session, float(number))
    assert centre.gallery.complete
    tried = [wish.recipe.known.centre_px for _, wish in session.looks]
    assert tried[0] == 31.25
    assert sorted(x for x in tried if x is not None) == [27.25, 29.25, 31.25, 33.25, 35.25]
    assert all((wish.what, wish.index) == ("image", 20) for _, wish in session.looks)
    assert [c.pixels is not None for c in centre.gallery.candidates].count(False) == 1
    last = centre.gallery.candidates[4]
    qtbot.mouseClick(last, Qt.MouseButton.LeftButton)
    assert edits[-1].known.centre_px == 35.25
    assert last.caption.text() == "35.25 px, taken"
    # that there is none stays said
    assert centre.gallery.candidates[1].caption.text() == "29.25 px: no image"
    assert "no image" in centre.gallery.candidates[1].toolTip()
    first = centre.gallery.candidates[0]
    first.setFocus()
    qtbot.keyClick(first, Qt.Key.Key_Return)
    assert edits[-1].known.centre_px == 27.25
    # images of another preparation say nothing of this one
    centre.show_draft(CT, None, msgspec.structs.replace(CT.recipe, steps=()))
    assert centre.gallery.candidates == []
