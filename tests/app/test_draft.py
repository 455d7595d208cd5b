"""Editing a recipe: every edit can be undone, and quick edits of one number are one step."""

from __future__ import annotations

from msgspec.structs import replace

from equipoise.draft import Draft, changed_place, edit, is_changed, redo, settle, start, undo
from equipoise_engine.recipe import FlatField, Known, NegativeLog, Recipe, Rings, Selection, Span

FIRST = Recipe(steps=(FlatField(), NegativeLog()))


def rows(first: int) -> Recipe:
    return replace(FIRST, selection=Selection(rows=Span(first=first)))


def fresh() -> Draft:
    return start("/data/a.h5", "ct", FIRST)


def test_undo_and_redo_go_through_every_edit() -> None:
    recipes = [rows(1), replace(FIRST, known=Known(centre_px=3.5)), replace(FIRST, steps=(NegativeLog(), FlatField()))]
    draft = fresh()
    assert undo(draft) == draft
    assert redo(draft) == draft
    for number, recipe in enumerate(recipes):
        draft = edit(draft, recipe, 10.0 * number)
    seen = []
    while draft.past:
        draft = undo(draft)
        seen.append(draft.recipe)
    assert seen == [*recipes[1::-1], FIRST]
    assert not is_changed(draft)
    for recipe in recipes:
        draft = redo(draft)
        assert draft.recipe == recipe
    assert is_changed(draft)


def test_an_edit_after_undo_drops_what_was_undone() -> None:
    draft = undo(edit(fresh(), rows(1), 0.0))
    draft = edit(draft, rows(2), 10.0)
    assert draft.future == ()
    assert undo(draft).recipe == FIRST


def test_an_edit_that_changes_nothing_is_none() -> None:
    draft = fresh()
    assert edit(draft, replace(FIRST), 0.0) is draft


def test_quick_edits_of_one_number_are_one_step_back() -> None:
    draft = fresh()
    for number in range(1, 6):
        draft = edit(draft, rows(number), 0.2 * number)
    assert len(draft.past) == 1
    assert undo(draft).recipe == FIRST
    draft = edit(draft, rows(9), 60.0)
    assert undo(draft).recipe == rows(5)


def test_quick_edits_of_different_values_stay_apart() -> None:
    draft = edit(fresh(), rows(1), 0.0)
    draft = edit(draft, replace(rows(1), known=Known(centre_px=1.0)), 0.1)
    assert undo(draft).recipe == rows(1)


def test_after_it_was_opened_the_recipe_of_the_engine_is_shown_and_the_past_kept() -> None:
    draft = edit(fresh(), rows(1), 0.0)
    found = replace(rows(1), known=Known(centre_px=31.5))
    draft = settle(draft, "ct", found)
    assert draft.recipe == found
    assert not is_changed(draft)
    assert undo(draft).recipe == FIRST


def test_the_number_that_changed_is_named() -> None:
    assert changed_place(FIRST, rows(2)) == "selection.rows.first"
    assert changed_place(FIRST, FIRST) == ""
    assert changed_place(FIRST, replace(FIRST, steps=(FlatField(), NegativeLog(floor=0.1)))) == "steps.1.floor"
    assert changed_place(FIRST, replace(FIRST, steps=(NegativeLog(), FlatField()))) == ""
    assert changed_place(FIRST, replace(FIRST, steps=(FlatField(), NegativeLog(), Rings()))) == ""
    assert changed_place(FIRST, replace(FIRST, steps=(FlatField(average="median"), NegativeLog()))) == ""
    both = replace(FIRST, selection=Selection(rows=Span(first=1), columns=Span(first=1)))
    assert changed_place(FIRST, both) == ""
