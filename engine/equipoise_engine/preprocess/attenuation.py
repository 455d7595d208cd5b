"""From measured numbers to line integrals of attenuation, by the steps of the scan's recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.chain import Chain
from equipoise_engine.preprocess.phase import smoothing
from equipoise_engine.recipe import (
    CT_STEPS,
    AirNormalisation,
    BeamHardening,
    CtStep,
    DeadPixels,
    FlatField,
    NegativeLog,
    PhaseRetrieval,
    Rings,
    Step,
    Tilt,
    Zingers,
    name_of,
)

_ANY = frozenset({DataState.COUNTS, DataState.TRANSMISSION, DataState.ATTENUATION})
_CORRECTED = frozenset({DataState.TRANSMISSION, DataState.ATTENUATION})
_TAKES: dict[type[CtStep], tuple[frozenset[DataState], DataState | None]] = {
    FlatField: (frozenset({DataState.COUNTS}), DataState.TRANSMISSION),
    DeadPixels: (_CORRECTED, None),
    Zingers: (_ANY, None),
    PhaseRetrieval: (frozenset({DataState.TRANSMISSION}), None),
    Tilt: (_CORRECTED, None),
    AirNormalisation: (_CORRECTED, None),
    NegativeLog: (frozenset({DataState.TRANSMISSION}), DataState.ATTENUATION),
    BeamHardening: (frozenset({DataState.ATTENUATION}), None),
    Rings: (frozenset({DataState.ATTENUATION}), None),
}
"""What each kind of step takes, and what it gives; None gives what it took."""
_GIVEN_BY = {DataState.TRANSMISSION: name_of(FlatField), DataState.ATTENUATION: name_of(NegativeLog)}


@dataclass(frozen=True)
class Change:
    """What a step did, for the user.

    Parameters
    ----------
    step
        Name of the step; empty for what is done with any.
    text
        What was changed, after the number of it: "values below the smallest transmission".
    count
        How many.
    """

    step: str
    text: str
    count: int


@dataclass(frozen=True)
class Prepared:
    """Sinograms, and what was done to the numbers on the way.

    Parameters
    ----------
    sinograms
        Line integrals of attenuation `(slice, view, column)`, float32, without unit.
    changes
        What was changed by each step that repairs, also where nothing was.
    unlit
        Number of views without beam, which were made up.
    elements
        Number of detector elements that were made up.
    """

    sinograms: NDArray[np.float32]
    changes: tuple[Change, ...]
    unlit: int = 0
    elements: int = 0

    @property
    def repaired_pixels(self) -> int:
        """Number of detector elements and of single values that were made up from their neighbours."""
        return sum(change.count for change in self.changes if change.step in ("dead-pixels", ""))

    @property
    def clipped(self) -> int:
        """Number of values whose transmission was not positive, or below the floor."""
        return sum(change.count for change in self.changes if change.step == "log")


def attenuation(scan: CtAcquisition, rows: slice) -> NDArray[np.float32]:
    """Return line integrals of attenuation `(slice, view, column)`, float32, of the detector rows in `rows`.

    They are made by the steps of the scan's recipe. Steps that look at rows beside (zingers, phase, tilt) read them as
    well: the numbers of a row are the same, whichever others are asked for.

    Raises
    ------
    BadInput
        The steps do not fit the scan, more than 5 % of the values are not finite, or a whole detector row is dead.
    """
    return prepare(scan, rows).sinograms


def prepare(scan: CtAcquisition, rows: slice) -> Prepared:
    """Return line integrals of attenuation of the detector rows in `rows`, and what was changed for them.

    Raises
    ------
    BadInput
        The steps do not fit the scan, more than 5 % of the values are not finite, or a whole detector row is dead.
    """
    steps, states = _plan(scan)
    start, stop, stride = rows.indices(scan.shape[1])
    chosen = np.arange(start, stop, stride)
    if not chosen.size:
        raise BadInput(f"{scan.path.name}: no slices in {start}:{stop}; the scan has {scan.shape[1]}")
    rising = np.sort(chosen)
    chain = Chain(scan, steps, states, rising)
    views = range(scan.shape[0])
    values = chain.block(rising, views, len(steps), views)
    chain.finish(values, rising)
    changes = [Change("", "values that are not finite, made up from their neighbours", chain.single)]
    said: dict[type[CtStep], tuple[str, int]] = {
        FlatField: ("views without beam, made up from those before and after", chain.unlit),
        DeadPixels: ("detector elements, made up from their neighbours", chain.elements),
        Zingers: ("specks, replaced by the median around them", chain.specks),
        NegativeLog: ("values below the smallest transmission", chain.clipped),
        Rings: ("values changed by more than a hundredth of their spread", chain.without_stripes),
    }
    if not any(isinstance(step, DeadPixels) for step in steps):
        changes.append(Change("", *said[DeadPixels]))
    changes += [Change(name_of(step), *said[type(step)]) for step in steps if type(step) in said]
    return Prepared(
        values if stride > 0 else values[::-1].copy(), tuple(dict.fromkeys(changes)), chain.unlit, chain.elements
    )


def stages(
    scan: CtAcquisition, stage: int | None, *, view: int | None = None, row: int | None = None
) -> tuple[NDArray[np.float32], DataState]:
    """Return a picture of the numbers between two steps, float32, and what they mean.

    Parameters
    ----------
    scan
        With the recipe whose steps are taken.
    stage
        Number of steps; 0 shows what is stored, None what all steps make of it.
    view, row
        Exactly one: the projection `(row, column)` of a view, or the sinogram `(view, column)` of a detector row. A
        projection after the removal of rings takes all views of the scan.

    Raises
    ------
    BadInput
        There is no such stage, view or row, or the steps do not fit the scan.
    """
    steps, states = _plan(scan)
    number = len(steps) if stage is None else stage
    if not 0 <= number <= len(steps):
        raise BadInput(f"there is no stage {number}; the preparation has {len(steps)} steps")
    views, rows, _ = scan.shape
    if (view is None) == (row is None):
        raise BadInput("a picture between steps is that of a view or of a row")
    for name, index, count in (("view", view, views), ("row", row, rows)):
        if index is not None and not 0 <= index < count:
            raise BadInput(f"{scan.path.name}: there is no {name} {index}; the scan has {count}")
    chain = Chain(scan, steps, states, np.zeros(0, dtype=np.intp))
    some_rows = np.arange(rows) if row is None else np.array([row])
    some_views = range(views) if view is None else range(view, view + 1)
    values = chain.block(some_rows, some_views, number, range(0))
    if stage is None:
        chain.finish(values, some_rows)
    return np.ascontiguousarray(values[0] if view is None else values[:, 0]), states[number]


def default_steps(scan: CtAcquisition) -> tuple[CtStep, ...]:
    """Return the usual steps for what the numbers of a scan mean.

    Raises
    ------
    BadInput
        They are nothing that attenuation can be made of.
    """
    match scan.state:
        case DataState.COUNTS:
            return FlatField(), DeadPixels(), NegativeLog()
        case DataState.TRANSMISSION:
            return (NegativeLog(),)
        case DataState.ATTENUATION:
            return ()
        case _:
            raise BadInput(f"{scan.path.name}: {scan.state.value} cannot be turned into attenuation")


def check_steps(scan: CtAcquisition, steps: tuple[Step, ...]) -> None:
    """Check that steps follow from one another, end with attenuation, and suit the scan.

    Raises
    ------
    BadInput
        They do not; the message names the first step that does not fit.
    """
    _checked(scan, steps)


def _plan(scan: CtAcquisition) -> tuple[tuple[CtStep, ...], tuple[DataState, ...]]:
    return _checked(scan, default_steps(scan) if scan.recipe.steps is None else scan.recipe.steps)


def _checked(scan: CtAcquisition, steps: tuple[Step, ...]) -> tuple[tuple[CtStep, ...], tuple[DataState, ...]]:
    """Return the steps, and what the numbers mean before the first and after each one."""
    states = [scan.state]
    fitting: list[CtStep] = []
    for number, step in enumerate(steps, start=1):
        named = f"{scan.path.name}: step {number} ({name_of(step)})"
        if not isinstance(step, CT_STEPS):
            raise BadInput(f"{named} is one for k-space; this is a CT scan", "Leave it out.")
        takes, gives = _TAKES[type(step)]
        if states[-1] not in takes:
            raise _misplaced(named, states[-1], takes)
        wrong = _unsuited(scan, step)
        if wrong:
            raise BadInput(f"{named}: {wrong}")
        fitting.append(step)
        states.append(states[-1] if gives is None else gives)
    if states[-1] is not DataState.ATTENUATION:
        after = f"after step {len(steps)} ({name_of(steps[-1])})" if steps else "without any step"
        raise BadInput(
            f"{scan.path.name}: {after} the numbers are {states[-1].value}, but attenuation is reconstructed",
            "Add 'log' at the end." if states[-1] is DataState.TRANSMISSION else "Add 'flat-field' and 'log'.",
        )
    return tuple(fitting), tuple(states)


def _misplaced(named: str, state: DataState, takes: frozenset[DataState]) -> BadInput:
    """Return the error of a step that does not take the state that it gets."""
    order = list(DataState)
    wanted = sorted(takes, key=order.index)
    words = " or ".join(each.value for each in wanted)
    if order.index(state) > order.index(wanted[-1]):
        return BadInput(
            f"{named} takes {words}; the numbers are {state.value} already", "Leave it out, or put it further ahead."
        )
    return BadInput(f"{named} takes {words}; the numbers are {state.value}", f"Put '{_GIVEN_BY[wanted[0]]}' before it.")


def _unsuited(scan: CtAcquisition, step: CtStep) -> str:
    """Return what about a step's values does not suit the scan; nothing where all do."""
    _, rows, columns = scan.shape
    match step:
        case Zingers() if step.size % 2 == 0:
            return f"the size {step.size} is even"
        case PhaseRetrieval():
            smoothing(scan, step)
        case Tilt() if rows == 1 and step.angle_deg != 0:
            return "a single detector row cannot be turned"
        case AirNormalisation() if step.columns * (2 if step.side == "both" else 1) >= columns:
            return f"{step.columns} columns of air at {step.side} leave none of {columns} for the object"
        case BeamHardening() if not all(math.isfinite(value) for value in step.coefficients):
            return "a coefficient is not finite"
    return ""
