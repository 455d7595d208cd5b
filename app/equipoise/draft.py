"""A recipe that is being edited, with what it was before. No Qt here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from equipoise_engine.recipe import Recipe

MERGE_SECONDS = 1.0
MAX_PAST = 200


@dataclass(frozen=True)
class Draft:
    """The recipe of one scan on its way to the engine.

    Parameters
    ----------
    path
        The scan.
    kind
        "ct", "mri", or empty where nobody knows yet.
    recipe
        As it stands now.
    applied
        With which the scan is open, or was asked for.
    past
        What undo brings back, newest last.
    future
        What redo brings back, newest last.
    place
        Name of the one number that the last edit changed, as "selection.rows.first"; empty for anything else.
    edited
        Seconds of the last edit on any clock that rises.
    """

    path: str
    kind: str
    recipe: Recipe
    applied: Recipe
    past: tuple[Recipe, ...] = ()
    future: tuple[Recipe, ...] = ()
    place: str = ""
    edited: float = 0.0


def start(path: str, kind: str, recipe: Recipe) -> Draft:
    """Return a draft without a past."""
    return Draft(path=path, kind=kind, recipe=recipe, applied=recipe)


def edit(draft: Draft, recipe: Recipe, now: float) -> Draft:
    """Return the draft with another recipe; quick edits of one number are one step back.

    Parameters
    ----------
    now
        Seconds, on the clock of the earlier edits.
    """
    if recipe == draft.recipe:
        return draft
    place = changed_place(draft.recipe, recipe)
    merged = bool(place) and place == draft.place and now - draft.edited <= MERGE_SECONDS and bool(draft.past)
    past = draft.past if merged else (*draft.past, draft.recipe)[-MAX_PAST:]
    return replace(draft, recipe=recipe, past=past, future=(), place=place, edited=now)


def undo(draft: Draft) -> Draft:
    """Return the draft before its last edit, or as it is where there was none."""
    if not draft.past:
        return draft
    return replace(draft, recipe=draft.past[-1], past=draft.past[:-1], future=(*draft.future, draft.recipe), place="")


def redo(draft: Draft) -> Draft:
    """Return the draft after the edit that was undone last, or as it is where there was none."""
    if not draft.future:
        return draft
    return replace(draft, recipe=draft.future[-1], past=(*draft.past, draft.recipe), future=draft.future[:-1], place="")


def settle(draft: Draft, kind: str, recipe: Recipe) -> Draft:
    """Return the draft after its scan was opened with a recipe, which becomes the one that it shows; no edit."""
    return replace(draft, kind=kind, recipe=recipe, applied=recipe, place="")


def rebase(draft: Draft, kind: str, applied: Recipe) -> Draft:
    """Return the draft, its edits kept, after its scan was opened with another recipe."""
    return replace(draft, kind=kind, applied=applied)


def is_changed(draft: Draft) -> bool:
    """Whether the recipe is another than the scan is open with."""
    return draft.recipe != draft.applied


def changed_place(before: Recipe, after: Recipe) -> str:
    """Return the dotted name of the one number in which two recipes differ; empty where it is anything else."""
    names: list[str] = []
    one: object = before
    other: object = after
    while (inside := _only_difference(one, other)) is not None:
        name, one, other = inside
        names.append(name)
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers) and not isinstance(one, bool):
        return ".".join(names)
    return ""


def _only_difference(before: object, after: object) -> tuple[str, object, object] | None:
    """Return name and values of the only part in which two values differ; None where there is no such part."""
    pairs: list[tuple[str, object, object]]
    if isinstance(before, msgspec.Struct) and type(before) is type(after):
        pairs = [(name, getattr(before, name), getattr(after, name)) for name in before.__struct_fields__]
    elif isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        pairs = [(str(number), *both) for number, both in enumerate(zip(before, after, strict=True))]
    else:
        return None
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    return differing[0] if len(differing) == 1 else None
