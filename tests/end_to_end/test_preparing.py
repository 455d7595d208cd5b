"""Preparing a scan in the whole program: pictures between the steps, a recipe, and the image that comes out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec.structs import replace
from pytestqt.qtbot import QtBot

from equipoise.state import is_idle
from equipoise.view.main import MainWindow
from equipoise_engine.recipe import Selection, Span


def until(qtbot: QtBot, holds: Callable[[], bool]) -> None:
    qtbot.waitUntil(holds, timeout=60_000)


def test_a_scan_is_prepared_and_its_recipe_applied(qtbot: QtBot, lasting_window: MainWindow) -> None:
    session, window = lasting_window.session, lasting_window.prepare
    lasting_window.actions_by_id["prepare"].trigger()
    until(qtbot, lambda: window.preview.pixels() is not None)
    image = window.preview.pixels()
    assert image is not None
    assert image.shape == (64, 64)

    # before the flat field there are counts, after it transmission
    window.tabs.setCurrentWidget(window.steps)
    page = window.steps
    page.list.setCurrentRow(0)
    until(qtbot, lambda: page.after.pixels() is not None and page.change.pixels() is not None)
    before, after = page.before.pixels(), page.after.pixels()
    assert before is not None
    assert after is not None
    assert before.shape == after.shape == (4, 64)
    assert before.max() > 1000
    assert 0.9 < after.max() < 1.1
    np.testing.assert_allclose(after, before / 1e4, rtol=1e-3)
    until(qtbot, lambda: page.words.text().startswith("256 changed (100.0 %), 0 negative, 0 NaN"))

    # what the user types shows at once, and a value that cannot be is told without a notice
    draft = window.draft
    assert draft is not None
    window.edit(replace(draft.recipe, selection=Selection(rows=Span(first=2), columns=Span(first=40, last=44))))
    until(qtbot, lambda: bool(window.preview.problem.text()))
    assert session.state.notices == ()
    window.undo()
    window.edit(replace(draft.recipe, selection=Selection(rows=Span(first=2))))
    until(qtbot, lambda: not window.preview.problem.text() and not session.is_looking("preview"))

    window.apply_button.click()
    until(qtbot, lambda: len(session.state.runs) == 2 and is_idle(session.state))
    first, second = session.state.runs
    assert first.result is not None
    assert second.result is not None
    assert (first.result.shape[0], second.result.shape[0]) == (4, 2)
    assert second.label == "FBP, recipe 2"
    # both panes show the same slice of the object, which has different numbers in them
    shown = {pane.run: pane.picture for pane in session.state.panes if pane.picture is not None}
    one, other = shown[first.run], shown[second.run]
    assert one.index == other.index + 2
    np.testing.assert_allclose(one.pixels, other.pixels, atol=2e-3)
    window.close()
