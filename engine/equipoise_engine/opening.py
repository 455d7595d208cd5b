"""Opening a scan by its recipe: read, cut, with its preparation settled and its rotation centre found."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from equipoise_engine.acquisition import Acquisition, CtAcquisition, Match, MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.formats.known import told
from equipoise_engine.measured import is_truncated
from equipoise_engine.preprocess.attenuation import Prepared, check_steps, default_steps, prepare
from equipoise_engine.preprocess.centre import find_centre
from equipoise_engine.preprocess.centre.vote import LOW
from equipoise_engine.preprocess.kspace_steps import check_kspace_steps, default_kspace_steps
from equipoise_engine.preprocess.selection import file_column, selected
from equipoise_engine.progress import Progress, Watch
from equipoise_engine.recipe import Known, Recipe, Step

Change = Callable[[tuple[Step, ...]], tuple[Step, ...]]
_Key = TypeVar("_Key")

KEPT = 4
"""Scans that are kept open for looking at, with their recipes."""
JUDGED_ROWS = 5
"""Detector rows that tell whether an object reaches beyond the detector, and how much of a scan had to be made up."""
MUCH = 0.01
"""Share of elements or values from which it is said that they were made up."""


def open_scan(path: Path, recipe: Recipe, watch: Watch, change: Change | None = None) -> Acquisition:
    """Return the scan at `path`, cut and with a complete recipe: its steps and its rotation centre are settled.

    Parameters
    ----------
    change
        Returns the steps to take in place of those that the recipe names, or that are usual.

    Raises
    ------
    BadInput
        A file is missing or damaged, its parts do not fit together, or the recipe cannot be followed.
    Incomplete
        It cannot be understood without something that the recipe may tell.
    Unsupported, OutOfMemory
        As `formats.read`.
    """
    watch(Progress("read", 1, 2))
    return settled(read(path, recipe.known), recipe, watch, change)


def settled(whole: Acquisition, recipe: Recipe, watch: Watch, change: Change | None = None) -> Acquisition:
    """Return a scan that was read, cut and with its steps, rotation centre and extent settled."""
    scan = replace(selected(whole, recipe.selection), full_shape=whole.shape)
    steps = usual_steps(scan) if recipe.steps is None else recipe.steps
    if change is not None:
        steps = change(steps)
    scan = replace(scan, recipe=msgspec.structs.replace(recipe, steps=steps))
    if isinstance(scan, MriAcquisition):
        check_kspace_steps(scan, steps)
        return scan
    check_steps(scan, steps)
    if scan.geometry.centre_px is None:
        watch(Progress("centre", 2, 2))
        scan = _centred(scan)
    assert scan.geometry.centre_px is not None
    centre = file_column(recipe.selection, scan.geometry.centre_px)
    known = msgspec.structs.replace(recipe.known, centre_px=centre)
    chosen = np.unique(np.linspace(0, scan.shape[1] - 1, JUDGED_ROWS).round().astype(int))
    prepared = [prepare(scan, slice(row, row + 1)) for row in chosen]
    sample = np.concatenate([one.sinograms for one in prepared])
    return replace(
        scan,
        warnings=(*scan.warnings, *_repairs(prepared)),
        geometry=replace(scan.geometry, truncated=is_truncated(sample, scan.geometry)),
        recipe=msgspec.structs.replace(scan.recipe, known=known),
    )


def _repairs(prepared: list[Prepared]) -> tuple[str, ...]:
    """Return sentences for the user about what had to be made up of some rows, where it is much."""
    views, columns = prepared[0].sinograms.shape[1:]
    said = []
    unlit = max(one.unlit for one in prepared)
    if unlit:
        said.append(f"The beam was off in {unlit} of {views} views, which were made up from those before and after.")
    looked = f"in {len(prepared)} detector rows that were looked at" if len(prepared) > 1 else "in the detector row"
    elements = sum(one.elements for one in prepared) / (len(prepared) * columns)
    if elements > MUCH:
        said.append(
            f"{100 * elements:.1f} % of the detector elements {looked} are dead and were made up from their neighbours."
        )
    clipped = sum(one.clipped for one in prepared) / (len(prepared) * views * columns)
    if clipped > MUCH:
        said.append(
            f"{100 * clipped:.1f} % of the values {looked} transmit nothing that can be told from noise, and were"
            " raised to the smallest transmission. Check the open-beam and dark frames if the object is no metal."
        )
    return tuple(said)


def _centred(scan: CtAcquisition) -> CtAcquisition:
    """Return a scan with its rotation centre found; where no method can tell it, with the middle of the detector."""
    try:
        found = find_centre(scan)
    except BadInput as error:
        centre = (scan.shape[2] - 1) / 2
        match = Match("rotation centre", "the middle of the detector", (), "no method can tell it from these views")
        doubt = (
            f"{error.message.partition(': ')[2]}: the middle of the detector, column {centre:g}, was taken. Give it."
        )
    else:
        centre = found.centre_px
        match = Match("rotation centre", "found in the projections", (), found.text)
        doubt = f"Check the rotation centre: {found.text}." if found.at_edge or found.confidence < LOW else ""
    return replace(
        scan,
        geometry=replace(scan.geometry, centre_px=centre),
        matched=(*scan.matched, match),
        warnings=(*scan.warnings, doubt[:1].upper() + doubt[1:]) if doubt else scan.warnings,
        guessed=(*scan.guessed, "centre_px") if doubt else scan.guessed,
    )


def usual_steps(scan: Acquisition) -> tuple[Step, ...]:
    """Return the preparation that a scan gets where its recipe names none."""
    return default_steps(scan) if isinstance(scan, CtAcquisition) else default_kspace_steps(scan)


class OpenScans:
    """The scans that were looked at last, so that another look need not read their headers again."""

    def __init__(self) -> None:
        self._read: OrderedDict[tuple[Path, int, Known], Acquisition] = OrderedDict()
        self._settled: OrderedDict[tuple[Path, int, Recipe], Acquisition] = OrderedDict()

    def scan(self, path: Path, recipe: Recipe, watch: Watch) -> Acquisition:
        """Return the scan at `path` by its recipe. Raises as `open_scan`."""
        changed = path.stat().st_mtime_ns if path.exists() else 0
        done = self._settled.get((path, changed, recipe))
        if done is None:
            # the centre is no part of reading: trying others must not read the file again
            bare = msgspec.structs.replace(recipe.known, centre_px=None)
            whole = self._read.get((path, changed, bare))
            if whole is None:
                whole = read(path, bare)
            _keep(self._read, (path, changed, bare), whole)
            if recipe.known.centre_px is not None:
                whole = told(whole, Known(centre_px=recipe.known.centre_px))
            done = settled(whole, recipe, watch)
        _keep(self._settled, (path, changed, recipe), done)
        return done


def _keep(kept: OrderedDict[_Key, Acquisition], key: _Key, scan: Acquisition) -> None:
    kept[key] = scan
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)
