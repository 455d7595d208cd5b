"""How much of a scan a selection takes: its shape, in numbers and in words. No Qt here."""

from __future__ import annotations

from math import prod

import msgspec

from equipoise_engine.protocol import ScanFacts
from equipoise_engine.recipe import Recipe, Selection, Span

FIRST_WORK = 1.3e10
"""Pixels times views that the image made at opening may take: some 20 seconds on two processor cores."""
FIRST_VOXELS = 1 << 26
"""Voxels that it may have."""
_AXES = {"ct": ("views", "rows", "columns"), "mri": ("slices", "coils", "lines", "samples")}


def span_size(span: Span, count: int) -> int:
    """Return how many of `count` indices a span takes."""
    return len(range(count)[span.first : span.last : span.step])


def span_of(first: int, last: int, step: int, count: int) -> Span:
    """Return the span from `first` to `last`, both taken; one that reaches the end of `count` stays open there."""
    return Span(first=first, last=None if last >= count - 1 else max(last, first) + 1, step=step)


def last_of(span: Span, count: int) -> int:
    """Return the largest index that a span may take of `count`."""
    return count - 1 if span.last is None else min(span.last, count) - 1


def selected_shape(kind: str, full_shape: tuple[int, ...], selection: Selection) -> tuple[int, ...]:
    """Return the shape of what a selection takes, as `ScanFacts.shape`; 0 along an axis where it takes nothing."""
    if not full_shape:
        return ()
    if kind == "mri":
        return (span_size(selection.rows, full_shape[0]), *full_shape[1:])
    views, rows, columns = full_shape
    views = span_size(selection.views, views)
    rows = span_size(selection.rows, rows)
    columns = span_size(selection.columns, columns)
    by = selection.bin
    return views, rows // by if rows >= by else rows, columns // by


def slices_of(kind: str, full_shape: tuple[int, ...], selection: Selection) -> int:
    """Return how many slices a selection takes, 0 where the shape is not known."""
    shape = selected_shape(kind, full_shape, selection)
    return 0 if not shape else shape[0] if kind == "mri" else shape[1]


def same_slice(kind: str, full_shape: tuple[int, ...], here: Selection, there: Selection, index: int) -> int:
    """Return the number in one selection of a scan of the slice with a number in another; it may lie outside."""
    if (here.rows, here.bin) == (there.rows, there.bin):
        return index

    def together(selection: Selection) -> int:
        rows = span_size(selection.rows, full_shape[1]) if kind == "ct" else 0
        return selection.bin if rows > 1 and rows >= selection.bin else 1

    by, of = together(here), together(there)
    row = here.rows.first + here.rows.step * (index * by + (by - 1) / 2)
    return round(((row - there.rows.first) / there.rows.step - (of - 1) / 2) / of)


def shape_text(kind: str, full_shape: tuple[int, ...], selection: Selection) -> str:
    """Return what a selection takes of a scan, as "90 of 181 views, 2 rows, 320 of 640 columns: 12 % of the data"."""
    shape = selected_shape(kind, full_shape, selection)
    if not shape:
        return ""
    words = []
    for name, kept, whole in zip(_AXES[kind], shape, full_shape, strict=True):
        words.append(f"{kept} of {whole} {name}" if kept != whole else f"{kept} {name if kept != 1 else name[:-1]}")
    share = prod(shape) / prod(full_shape)
    part = "all" if share == 1 else f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
    return f"{', '.join(words)}: {part} of the data"


def unselected(recipe: Recipe) -> Recipe:
    """Return a recipe that takes the whole scan."""
    return msgspec.structs.replace(recipe, selection=Selection())


def first_slices(facts: ScanFacts) -> tuple[int, int] | None:
    """Return the slices to reconstruct when a scan opens, about the middle: None for all of one that is not large."""
    if facts.methods[:1] == ("fdk",):
        # a cone beam is made as a whole
        return None
    side = facts.shape[-1] * (facts.shape[-1] if facts.kind == "ct" else facts.shape[-2])
    work = side * (facts.shape[0] if facts.kind == "ct" else facts.shape[1])
    count = max(1, min(int(FIRST_WORK / max(work, 1)), FIRST_VOXELS // max(side, 1)))
    if count >= facts.slices:
        return None
    first = (facts.slices - count) // 2
    return first, first + count
