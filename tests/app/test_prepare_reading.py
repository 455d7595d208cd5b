"""The page where the user says what the files do not."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtWidgets import QApplication, QComboBox
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.view.prepare.reading import ReadingPage
from equipoise_engine.protocol import MatchFact, Needed, ScanFacts
from equipoise_engine.recipe import AngleRange, Beam, Known, Recipe, Role, Source

SOURCES = (
    Source(name="/run/pictures", shape=(60, 4, 64), kind="uint16"),
    Source(name="/run/open", shape=(3, 4, 64), kind="uint16"),
    Source(name="/run/angle", shape=(60,), kind="float64"),
)
CT = ScanFacts(
    scan="ct",
    path="/data/odd.h5",
    kind="ct",
    format="HDF5",
    state="counts",
    shape=(60, 4, 64),
    slices=4,
    geometry=(
        ("beam", "parallel"),
        ("angles", "0.000 to 177.000 degrees"),
        ("rotation centre", "column 31.25"),
        ("pixel size", "not given (lengths count pixels)"),
    ),
    matched=(
        MatchFact(role="projections", source="/run/pictures", shape=(60, 4, 64), reason="the largest"),
        MatchFact(role="rotation centre", source="found in the projections", shape=(), reason="opposite views"),
    ),
    warnings=(),
    methods=("fbp",),
    recipe=Recipe(known=Known(centre_px=31.25)),
    full_shape=(60, 4, 64),
    guessed=("angles",),
    sources=SOURCES,
)
MRI = msgspec.structs.replace(
    CT,
    kind="mri",
    state="k-space",
    shape=(1, 8, 60, 1182),
    full_shape=(1, 8, 60, 1182),
    geometry=(("sampling", "60 readouts of 1182 samples, not on a grid"), ("matrix", "256 x 256 (y, x)")),
    matched=(MatchFact(role="k-space", source="kd", shape=(1182, 60, 8), reason="complex"),),
    recipe=Recipe(),
    guessed=(),
)
NEEDED = Needed(
    path="/data/odd.h5",
    recipe=Recipe(),
    missing=("projections", "angles"),
    sources=SOURCES,
    message="odd.h5: two datasets may be the projections",
)


@pytest.fixture
def page(qtbot: QtBot) -> Iterator[ReadingPage]:
    session = Session()
    page = ReadingPage(session)
    qtbot.addWidget(page)
    page.resize(820, 720)
    page.show()
    qtbot.waitExposed(page)
    yield page
    session.deleteLater()


@pytest.fixture
def edits(page: ReadingPage) -> list[Recipe]:
    made: list[Recipe] = []

    def take(recipe: Recipe) -> None:
        # as the window does: what was edited is shown again
        made.append(recipe)
        page.show_draft(page._facts, page._needed, recipe)

    page.edited.connect(take)
    return made


def choose(qtbot: QtBot, box: QComboBox, row: int) -> None:
    """Choose an entry by the keyboard."""
    box.setFocus()
    while box.currentIndex() != row:
        qtbot.keyClick(box, Qt.Key.Key_Down if box.currentIndex() < row else Qt.Key.Key_Up)


def test_fields_are_aligned_in_another_font(page: ReadingPage) -> None:
    page.show_draft(CT, None, CT.recipe)
    font = page.font()
    font.setPointSize(2 * font.pointSize())
    page.setFont(font)
    QApplication.processEvents()
    first, second = page.sources["projections"], page.layout_field
    left = [widget.mapTo(page, widget.rect().topLeft()).x() for widget in (first, second)]
    assert left[0] == left[1]


def test_what_was_matched_is_shown_and_nothing_is_edited_by_showing(page: ReadingPage, edits: list[Recipe]) -> None:
    page.show_draft(CT, None, CT.recipe)
    assert page.sources["projections"].currentText() == "/run/pictures (as found)"
    assert page._shapes["projections"].text() == "60 × 4 × 64"
    assert page._reasons["projections"].text() == "the largest"
    assert page.sources["flats"].currentText() == "as found: nothing"
    assert not page.sources["kspace"].isVisible()
    assert page.angles_field.currentText() == "As found: 0.000 to 177.000 degrees"
    assert page.centre_field.currentText() == "As found: column 31.25"
    assert edits == []


def test_where_values_come_from_is_said_in_words(page: ReadingPage) -> None:
    page.show_draft(CT, None, CT.recipe)
    words = {name: mark.word.text() for name, mark in page.marks.items() if mark.word.text()}
    assert words == {"angles": "guessed", "centre_px": "found"}
    page.show_draft(CT, None, Recipe(known=Known(state="transmission", angles=AngleRange(start_deg=0, stop_deg=180))))
    words = {name: mark.word.text() for name, mark in page.marks.items() if mark.word.text()}
    assert words == {"angles": "given", "state": "given"}
    assert page.marks["state"].accessibleName() == "Numbers are: given"


def test_what_is_missing_is_marked_as_needed(qtbot: QtBot, page: ReadingPage, edits: list[Recipe]) -> None:
    page.show_draft(None, NEEDED, Recipe())
    assert [role for role, mark in page.role_marks.items() if mark.word.text() == "needed"] == ["projections", "angles"]
    assert page.marks["angles"].word.text() == "needed"
    field = page.sources["projections"]
    assert [field.itemText(row) for row in range(2, field.count())] == ["/run/pictures", "/run/open"]
    choose(qtbot, field, 2)
    assert edits[-1].known.roles == (Role(role="projections", source="/run/pictures"),)
    assert page.role_marks["projections"].word.text() == "given"
    choose(qtbot, page.angles_field, 1)
    assert edits[-1].known.angles == AngleRange(start_deg=0, stop_deg=180)
    assert page.role_marks["angles"].word.text() == ""


def test_a_source_is_typed_with_its_frames(qtbot: QtBot, page: ReadingPage, edits: list[Recipe]) -> None:
    page.show_draft(CT, None, CT.recipe)
    line = page.sources["flats"].lineEdit()
    assert line is not None
    line.setFocus()
    line.selectAll()
    qtbot.keyClicks(line, "/run/open#0:3")
    assert edits == []
    qtbot.keyClick(line, Qt.Key.Key_Return)
    assert len(edits) == 1
    assert edits[-1].known.roles == (Role(role="flats", source="/run/open#0:3"),)
    # the centre was found with other flats
    assert edits[-1].known.centre_px is None
    choose(qtbot, page.sources["flats"], 1)
    assert edits[-1].known.roles == (Role(role="flats", source=""),)
    choose(qtbot, page.sources["flats"], 0)
    assert edits[-1].known.roles == ()


def test_angles_are_told_one_number_at_a_time(qtbot: QtBot, page: ReadingPage, edits: list[Recipe]) -> None:
    page.show_draft(CT, None, CT.recipe)
    assert not page.start.isVisible()
    choose(qtbot, page.angles_field, 1)
    assert page.stop.isVisible()
    assert page.angles_said.text() == "60 views, 3° apart, the last at 177°"
    page.stop.setFocus()
    page.stop.selectAll()
    qtbot.keyClicks(page.stop, "360")
    assert edits[-1].known.angles == AngleRange(start_deg=0, stop_deg=180)
    qtbot.keyClick(page.stop, Qt.Key.Key_Return)
    assert edits[-1].known.angles == AngleRange(start_deg=0, stop_deg=360)
    qtbot.mouseClick(page.inclusive, Qt.MouseButton.LeftButton, pos=QPoint(8, page.inclusive.height() // 2))
    assert edits[-1].known.angles == AngleRange(start_deg=0, stop_deg=360, inclusive=True)
    qtbot.mouseClick(page.clockwise, Qt.MouseButton.LeftButton, pos=QPoint(8, page.clockwise.height() // 2))
    assert edits[-1].known.clockwise
    qtbot.mouseClick(page.transposed, Qt.MouseButton.LeftButton, pos=QPoint(8, page.transposed.height() // 2))
    assert edits[-1].known.transposed


def test_values_that_are_not_touched_keep_their_digits(qtbot: QtBot, page: ReadingPage, edits: list[Recipe]) -> None:
    exact = Known(centre_px=31.2345678, angles=AngleRange(start_deg=0.123456789, stop_deg=180))
    page.show_draft(CT, None, Recipe(known=exact))
    choose(qtbot, page.state_field, 2)
    page.stop.setFocus()
    qtbot.keyClick(page.stop, Qt.Key.Key_Up)
    assert edits[-1].known.centre_px == 31.2345678
    assert edits[-1].known.angles == AngleRange(start_deg=0.123456789, stop_deg=181)


def test_a_diverging_beam_says_what_it_means(qtbot: QtBot, page: ReadingPage, edits: list[Recipe]) -> None:
    page.show_draft(CT, None, CT.recipe)
    assert page.pixel_field.isVisible()
    choose(qtbot, page.beam_field, 1)
    assert not page.pixel_field.isVisible()
    for field, text in ((page.source_axis, "100"), (page.source_detector, "400"), (page.element, "0.5")):
        field.setFocus()
        field.selectAll()
        qtbot.keyClicks(field, text)
        qtbot.keyClick(field, Qt.Key.Key_Return)
    assert edits[-1].known.beam == Beam(source_axis_mm=100, source_detector_mm=400, pixel_mm=0.5)
    assert page.beam_said.text() == "magnification 4, voxel 0.125 mm, fan 4.58°"
    choose(qtbot, page.beam_field, 0)
    assert edits[-1].known.beam is None


def test_the_centre_that_was_found_can_be_taken_and_moved(qtbot: QtBot, page: ReadingPage, edits: list[Recipe]) -> None:
    page.show_draft(CT, None, CT.recipe)
    assert not page.centre.isVisible()
    choose(qtbot, page.centre_field, 1)
    assert page.centre.isVisible()
    assert page.centre.value() == 31.25
    page.centre.setFocus()
    page.centre.selectAll()
    qtbot.keyClicks(page.centre, "30.5")
    qtbot.keyClick(page.centre, Qt.Key.Key_Return)
    assert edits[-1].known.centre_px == 30.5
    assert page.marks["centre_px"].word.text() == "given"
    choose(qtbot, page.centre_field, 0)
    assert edits[-1].known.centre_px is None


def test_an_mri_scan_has_a_matrix_along_trajectories_only(qtbot: QtBot, page: ReadingPage, edits: list[Recipe]) -> None:
    page.show_draft(MRI, None, Recipe())
    assert page.sources["kspace"].isVisible()
    assert not page.angles_field.isVisible()
    assert page.matrix_field.isVisible()
    choose(qtbot, page.matrix_field, 1)
    assert edits[-1].known.matrix == (256, 256)
    page.matrix_columns.setFocus()
    page.matrix_columns.selectAll()
    qtbot.keyClicks(page.matrix_columns, "320")
    qtbot.keyClick(page.matrix_columns, Qt.Key.Key_Return)
    assert edits[-1].known.matrix == (256, 320)
    grid = msgspec.structs.replace(MRI, geometry=(("sampling", "Cartesian, complete"), ("matrix", "64 x 48 (ky, kx)")))
    page.show_draft(grid, None, Recipe())
    assert not page.matrix_field.isVisible()
    qtbot.mouseClick(page.oversampling, Qt.MouseButton.LeftButton, pos=QPoint(8, page.oversampling.height() // 2))
    assert edits[-1].known.keep_oversampling


def test_every_field_has_a_name_and_a_tip(page: ReadingPage) -> None:
    fields = [
        *page.sources.values(),
        page.layout_field,
        page.state_field,
        page.start,
        page.stop,
        page.inclusive,
        page.clockwise,
        page.centre,
        page.pixel,
        page.source_axis,
        page.source_detector,
        page.element,
        page.matrix_rows,
        page.oversampling,
    ]
    assert all(field.accessibleName() and field.toolTip() for field in fields)
