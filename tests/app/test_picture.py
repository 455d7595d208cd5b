"""What a step changed in a picture, and the picture with its marks and the value under the mouse."""

from __future__ import annotations

import numpy as np
import pytest
from PySide6.QtCore import QPoint, QRectF, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from equipoise.view.prepare.picture import (
    PictureView,
    around_zero,
    axes_of,
    coloured,
    compare,
    difference,
    link,
    percentiles,
    shared_levels,
)

NAN = np.float32(np.nan)


def ramp(rows: int = 20, columns: int = 30) -> np.ndarray:
    return np.arange(1, rows * columns + 1, dtype=np.float32).reshape(rows, columns)


# --- without a window --------------------------------------------------------------------------------


def test_changed_negative_and_missing_pixels_are_counted() -> None:
    before, after = ramp(), ramp()
    after[3, 4] = -1
    after[5, 6:8] = 0
    after[7, 8] = NAN
    before[9, 9] = NAN
    overlay = compare(before, after)
    assert overlay.changed is not None
    # a number in place of none, and none in place of a number, are changes
    assert set(zip(*np.nonzero(overlay.changed), strict=True)) == {(3, 4), (5, 6), (5, 7), (7, 8), (9, 9)}
    assert np.argwhere(overlay.negative).tolist() == [[3, 4]]
    assert np.argwhere(overlay.missing).tolist() == [[7, 8]]
    assert overlay.words() == "5 changed (0.83 %), 1 negative, 1 NaN"
    assert overlay.words(kspace=True) == "5 changed (0.83 %), 1 empty"


def test_pictures_of_many_rows_are_compared_to_the_last_one() -> None:
    before = ramp(150, 40)
    after = before.copy()
    after[64, 3] += 1
    after[149, 39] = np.nan
    after[149, 0] = -1
    overlay = compare(before, after)
    assert overlay.changed is not None
    assert np.argwhere(overlay.changed).tolist() == [[64, 3], [149, 0], [149, 39]]
    assert np.argwhere(overlay.missing).tolist() == [[149, 39]]
    assert np.argwhere(overlay.negative).tolist() == [[149, 0]]


def test_rounding_is_no_change_and_holes_that_stay_are_none() -> None:
    before = ramp()
    before[0, 0] = NAN
    before[0, 1] = np.inf
    after = before * np.float32(1 + 1e-7)
    assert compare(before, after).words() == "0 changed (0.00 %), 0 negative, 2 NaN"
    after[0, 1] = -np.inf
    overlay = compare(before, after)
    assert overlay.changed is not None
    assert overlay.changed.sum() == 1


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0.00 %"), (1, "under 0.01 %"), (36, "0.09 %"), (39_999, "99.9 %"), (40_000, "100.0 %")]
)
def test_shares_are_never_rounded_to_none_or_all(count: int, words: str) -> None:
    before = np.ones((200, 200), np.float32)
    after = before.copy()
    after.reshape(-1)[:count] = 2
    assert f"{count} changed ({words})" in compare(before, after).words()


def test_pictures_of_different_size_are_told_and_not_compared() -> None:
    overlay = compare(ramp(4, 4), ramp(4, 2))
    assert overlay.changed is None
    assert overlay.words() == "of another size than before, 0 negative, 0 NaN"
    assert difference(ramp(4, 4), ramp(4, 2)) is None


def test_marks_of_single_pixels_survive_a_coarse_drawing() -> None:
    before, after = ramp(37, 53), ramp(37, 53)
    after[36, 52] = 0
    shown = coloured(compare(before, after), 8, False)
    assert shown.shape == (5, 7, 4)
    assert np.argwhere(shown[..., 3]).tolist() == [[4, 6]]
    assert coloured(compare(before, after), 1, False).shape == (37, 53, 4)


def test_kinds_of_marks_differ_in_colour_and_pattern() -> None:
    before, after = np.ones((12, 36), np.float32), np.ones((12, 36), np.float32)
    after[:, :12], after[:, 12:24], after[:, 24:] = 2, -1, NAN
    shown = coloured(compare(before, after), 1, False)
    patterns = [shown[:, part : part + 12, 3] for part in (0, 12, 24)]
    assert len({tuple(shown[6, column, :3]) for column in (5, 17, 29)}) == 3
    assert (patterns[0][0] != patterns[0][0, 0]).any()
    assert (patterns[1][0] == patterns[1][0, 0]).all()
    assert (patterns[1][:, 0] != patterns[1][0, 0]).any()
    assert (patterns[2] == 255).all()
    # where a sign means nothing, negative values are only changed
    assert tuple(coloured(compare(before, after), 1, True)[6, 17, :3]) == tuple(shown[6, 5, :3])


def test_levels() -> None:
    picture = ramp()
    picture[0, 0] = NAN
    assert percentiles(picture, 0, 100) == (2.0, 600.0)
    assert percentiles(np.full((3, 3), NAN), 1, 99) == (0.0, 1.0)
    low, high = percentiles(np.full((3, 3), 5, np.float32), 1, 99)
    assert low == 5
    assert high > 5
    assert shared_levels((0, 1), (0.1, 1.2)) == (0, 1.2)
    assert shared_levels((0, 1), (1000, 30000)) is None
    assert shared_levels((0, 1), (0, 30000)) is None
    few = np.zeros((50, 50), np.float32)
    few[1, 1], few[2, 2] = -4, 2
    low, high = around_zero(few)
    assert (low, high) == pytest.approx((-4, 4), rel=0.02)
    assert around_zero(np.zeros((3, 3), np.float32)) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("caption", "axes"),
    [
        ("view 12 (row, column), transmission", ("row", "column")),
        ("log10 of slice 0 (coil 2), (ky, kx)", ("ky", "kx")),
        ("sampling", ("row", "column")),
    ],
)
def test_axes_are_read_from_the_caption(caption: str, axes: tuple[str, str]) -> None:
    assert axes_of(caption) == axes


# --- in a window ------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(qtbot: QtBot) -> tuple[PictureView, PictureView]:
    made = (PictureView("Before"), PictureView("After"))
    link(made)
    for picture in made:
        qtbot.addWidget(picture)
        picture.resize(320, 300)
        picture.show()
        qtbot.waitExposed(picture)
        picture.set_picture(ramp(), "view 0 (row, column), counts")
    QApplication.processEvents()
    return made


def screen(picture: PictureView, row: float, column: float) -> QPoint:
    at = picture.view.mapFromScene(picture.box.mapViewToScene(QRectF(column, row, 0, 0).topLeft()))
    return QPoint(round(at.x()), round(at.y()))


def test_the_value_under_the_mouse_is_shown_in_all_linked_pictures(
    qtbot: QtBot, pictures: tuple[PictureView, PictureView]
) -> None:
    one, other = pictures
    other.set_picture(-ramp(), "view 0 (row, column), counts")
    QTest.mouseMove(one.view.viewport(), screen(one, 4.5, 7.5))
    qtbot.waitUntil(one.value.isVisible, timeout=2000)
    assert one.value.text() == "row 4, column 7: 128"
    assert other.value.text() == "row 4, column 7: -128"
    one.pointed.emit(None)
    assert not one.value.isVisible()
    one.show_point((99, 0))
    assert not one.value.isVisible()


def test_zoom_and_moves_by_keyboard_are_linked_and_reset(
    qtbot: QtBot, pictures: tuple[PictureView, PictureView]
) -> None:
    one, other = pictures
    whole = other.seen()
    one.view.setFocus()
    qtbot.keyClick(one.view, Qt.Key.Key_Plus)
    assert other.seen().width() == pytest.approx(0.8 * whole.width(), rel=0.01)
    qtbot.keyClick(one.view, Qt.Key.Key_Right)
    assert other.seen().center().x() > whole.center().x()
    assert other.seen() == one.seen()
    qtbot.keyClick(one.view, Qt.Key.Key_0)
    assert other.seen().width() == pytest.approx(whole.width(), rel=0.01)
    # a picture of the same size keeps the place, another size shows all of it
    qtbot.keyClick(one.view, Qt.Key.Key_Plus)
    zoomed = one.seen()
    one.set_picture(ramp() + 1)
    assert one.seen() == zoomed
    one.set_picture(ramp(40, 30))
    assert one.seen().contains(QRectF(0, 0, 30, 40).adjusted(0.1, 0.1, -0.1, -0.1))


def test_a_problem_leaves_the_picture_and_says_so_in_words(pictures: tuple[PictureView, PictureView]) -> None:
    picture = pictures[0]
    picture.set_problem("The angles are missing.")
    assert picture.problem.isVisible()
    assert "The angles are missing." in picture.problem.text()
    assert picture.pixels() is not None
    picture.set_problem("")
    assert not picture.problem.isVisible()


def test_flat_pictures_fill_their_pane_and_others_keep_their_proportions(
    pictures: tuple[PictureView, PictureView],
) -> None:
    picture = pictures[0]
    picture.set_picture(np.zeros((2, 640), np.float32))
    QApplication.processEvents()
    assert picture.seen().height() == pytest.approx(2, rel=0.05)
    picture.set_picture(np.zeros((300, 640), np.float32))
    QApplication.processEvents()
    pane = picture.view
    assert picture.seen().width() / picture.seen().height() == pytest.approx(pane.width() / pane.height(), rel=0.05)


def test_pixels_that_are_no_numbers_are_marked_without_being_asked(
    pictures: tuple[PictureView, PictureView],
) -> None:
    picture = pictures[0]
    holed = ramp()
    holed[10, 15] = NAN
    picture.set_picture(holed)
    picture.set_levels(0, 600)
    QApplication.processEvents()
    at = screen(picture, 10.5, 15.5)
    colour = picture.view.grab().toImage().pixelColor(at)
    assert (colour.red(), colour.green(), colour.blue()) == (255, 0, 200)
