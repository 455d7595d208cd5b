"""The steps of a recipe, one after the other, on whatever part of a scan is wanted.

A part is asked for after a step, and asks for what it needs after the step before: more rows where a step looks at
rows beside, all views where it looks at a whole sinogram. So the numbers do not depend on what is asked for together,
and no more is read than is needed. Values that are missing are NaN on the way.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.defects import (
    fill_between_views,
    fill_from_rows,
    fill_within_views,
    hot_elements,
    rows_with_holes,
    still_elements,
)
from equipoise_engine.preprocess.flat_field import (
    OpenBeam,
    brightest,
    is_low,
    level_of,
    open_beam,
    runs,
    taken,
    without_beam,
)
from equipoise_engine.preprocess.intensity import negative_log, polynomial, scaled_to_air
from equipoise_engine.preprocess.phase import smoothing
from equipoise_engine.preprocess.rings import without_rings
from equipoise_engine.preprocess.tilt import turn_of
from equipoise_engine.preprocess.zingers import without_zingers
from equipoise_engine.recipe import (
    AirNormalisation,
    BeamHardening,
    CtStep,
    DeadPixels,
    FlatField,
    NegativeLog,
    PhaseRetrieval,
    Rings,
    Tilt,
    Zingers,
)

MAX_BAD_SHARE = 0.05
"""Largest share of values that are not finite and are made up from their neighbours."""
TRANSMISSION_FLOOR = 1e-4
"""Smallest transmission of data that are not counts; counts are clipped to half a count."""
BLOCK_BYTES = 1 << 27
"""What is worked on at a time where rows beside the wanted ones are needed."""
LEAST_MONITOR = 1e-6
"""Smallest reading of the beam monitor that can be divided by."""
SAMPLED_VIEWS = 24
"""Views that tell how much an element varies, and how much beam there usually is; spread over the scan."""
FEWEST_VIEWS = 8
"""Fewest views that tell that."""
CHANGED = 0.01
"""Change of a value, as a share of the spread of its sinogram, from which it counts as changed."""

_Values = NDArray[np.float32]
_Rows = NDArray[np.intp]
_Work = Callable[[_Values, _Rows, range, _Rows], _Values]
"""From values `(row, view, column)` without holes, their detector rows, which follow each other, their views, and
wanted rows among them, to what becomes of the wanted rows."""


class Chain:
    """The steps of a scan, and what they did to the rows that are counted.

    Parameters
    ----------
    scan, steps
        Steps that fit the scan.
    states
        What the numbers mean before the first step and after each one.
    counted
        Detector rows `(row,)` in which changes are counted, and which must be in order; of others nothing is said.
    """

    def __init__(
        self, scan: CtAcquisition, steps: tuple[CtStep, ...], states: tuple[DataState, ...], counted: _Rows
    ) -> None:
        self._scan = scan
        self._steps = steps
        self._states = states
        self._counted = np.zeros(scan.shape[1], dtype=np.bool_)
        self._counted[counted] = True
        self._beams: dict[bytes, OpenBeam] = {}
        self._hot: dict[bytes, NDArray[np.bool_]] = {}
        self._still: dict[bytes, NDArray[np.bool_]] = {}
        self._usual: dict[bytes, NDArray[np.float64]] = {}
        self._unlit = np.zeros(scan.shape[:2], dtype=np.bool_)
        self._faulty: dict[int, NDArray[np.bool_]] = {}
        self._missing = 0
        self.single = 0
        """Values that were not finite, and were made up."""
        self.clipped = 0
        """Values below the smallest transmission."""
        self.specks = 0
        """Specks that were replaced."""
        self.without_stripes = 0
        """Values that the removal of stripes changed."""

    @property
    def elements(self) -> int:
        """Detector elements that were made up."""
        return sum(int(np.count_nonzero(mask)) for mask in self._faulty.values())

    @property
    def unlit(self) -> int:
        """Views without beam that were made up."""
        return int(np.count_nonzero(self._unlit.any(axis=1)))

    def block(self, rows: _Rows, views: range, stage: int, counted: range) -> _Values:
        """Return values after the first `stage` steps `(row, view, column)`, float32; what is missing is NaN.

        Parameters
        ----------
        rows
            Detector rows, rising.
        views
            Views, one after the other.
        stage
            Number of steps; 0 returns what is stored.
        counted
            Views in which changes are counted.
        """
        if stage == 0:
            return self._stored(rows, views, counted)
        step = self._steps[stage - 1]
        match step:
            case FlatField():
                return self._flat_field(step, rows, views, stage, counted)
            case DeadPixels():
                return self._dead_pixels(step, rows, views, stage, counted)
            case Zingers():
                return self._zingers(step, rows, views, stage, counted)
            case PhaseRetrieval():
                spread = smoothing(self._scan, step)

                def smooth(values: _Values, _rows: _Rows, _views: range, wanted: _Rows) -> _Values:
                    return spread.apply(values)[wanted]

                return self._beside(smooth, rows, views, stage, counted, margin=spread.margin)
            case Tilt():
                turn = turn_of(self._scan, step)
                if turn.angle_rad == 0:
                    return self.block(rows, views, stage - 1, counted)

                def upright(values: _Values, known: _Rows, _views: range, wanted: _Rows) -> _Values:
                    return turn.apply(values, int(known[0]), known[wanted])

                return self._beside(upright, rows, views, stage, counted, margin=turn.margin)
            case AirNormalisation():
                values = self.block(rows, views, stage - 1, counted)
                attenuated = self._states[stage - 1] is DataState.ATTENUATION
                scaled_to_air(values, step.columns, step.side, attenuated=attenuated)
                return values
            case NegativeLog():
                values = self.block(rows, views, stage - 1, counted)
                floor = np.full(rows.size, step.floor, dtype=np.float32) if step.floor else self._floor(rows, stage)
                below = negative_log(values, floor)
                self.clipped += int(below[np.ix_(*self._counted_among(rows, views, counted))].sum())
                return values
            case BeamHardening():
                values = self.block(rows, views, stage - 1, counted)
                polynomial(values, step.coefficients)
                return values
            case Rings():
                return self._rings(step, rows, views, stage, counted)

    def finish(self, values: _Values, rows: _Rows) -> None:
        """Make up what is still missing of whole sinograms `(row, view, column)`, in place.

        Raises
        ------
        BadInput
            More than 5 % of the values had to be made up.
        """
        views = range(values.shape[1])
        for row in rows_with_holes(values):
            holes = np.isnan(values[row])
            lost = self._fill(values[row], holes, int(rows[row]), views, views)
            if self._counted[rows[row]]:
                self.single += int(np.count_nonzero(lost & ~self._unlit[:, rows[row]])) * values.shape[2]
            fill_between_views(values[row], lost)
        if self.single > MAX_BAD_SHARE * values.size:
            raise BadInput(
                f"{self._scan.path.name}: {self.single} of {values.size} values are missing"
                f" ({100 * self.single / values.size:.1f} %, at most {100 * MAX_BAD_SHARE:.0f} % can be repaired)",
                "Check the steps of the preparation.",
            )

    # --- single steps -----------------------------------------------------------------------------

    def _stored(self, rows: _Rows, views: range, counted: range) -> _Values:
        stored = taken(self._scan.projections, views, rows)
        with np.errstate(over="ignore"):  # becomes infinite, and is then missing
            values = np.array(stored.transpose(1, 0, 2), dtype=np.float32, order="C")
        if stored.dtype.kind in "iub":
            return values
        finite = np.isfinite(values)
        if finite.all():
            return values
        values[~finite] = np.nan
        known, seen = self._counted_among(rows, views, counted)
        missing = ~finite[np.ix_(known, seen)]
        self._missing += int(np.count_nonzero(missing))
        total = int(self._counted.sum()) * self._scan.shape[0] * self._scan.shape[2]
        if self._missing > MAX_BAD_SHARE * total:
            row, view, column = (int(n) for n in np.argwhere(missing)[0])
            raise BadInput(
                f"{self._scan.path.name}: {self._missing} of {total} values ({100 * self._missing / total:.1f} %, at"
                f" most {100 * MAX_BAD_SHARE:.0f} % can be repaired) are not finite; the first is at (view, row,"
                f" column) = ({views[seen[view]]}, {rows[known[row]]}, {column})",
                "Export the projections again.",
            )
        return values

    def _flat_field(self, step: FlatField, rows: _Rows, views: range, stage: int, counted: range) -> _Values:
        values = self.block(rows, views, stage - 1, counted)
        beam = self._beam(rows, values if views == self._all_views else None)
        self._remember(rows, beam.unseen)
        self._divide(values, beam)
        unlit = self._without_beam(rows, views, stage, values)
        if step.monitor and self._scan.monitor is not None:
            monitor = self._scan.monitor[views.start : views.stop]
            wrong = np.flatnonzero(~(np.isfinite(monitor) & (monitor > LEAST_MONITOR)))
            if wrong.size:
                raise BadInput(
                    f"{self._scan.path.name}: the beam monitor reads {monitor[wrong[0]]:g} in view"
                    f" {views[int(wrong[0])]}",
                    "Leave the monitor out of the step 'flat-field', or leave out this view.",
                )
            values /= monitor.astype(np.float32)[None, :, None]
        if unlit is not None:
            values[unlit] = np.nan
            known, seen = self._counted_among(rows, views, counted)
            self._unlit[np.ix_(seen + views.start, rows[known])] = unlit[np.ix_(known, seen)].T
        return values

    @staticmethod
    def _divide(values: _Values, beam: OpenBeam) -> None:
        dark = np.where(beam.unseen, 0.0, beam.dark).astype(np.float32)
        values -= dark[:, None, :]
        values /= beam.signal.astype(np.float32)[:, None, :]

    def _without_beam(self, rows: _Rows, views: range, stage: int, values: _Values) -> NDArray[np.bool_] | None:
        """Return which views have no beam `(row, view)`, of transmission `(row, view, column)`; None for none."""
        total = self._scan.shape[0]
        if total < FEWEST_VIEWS:
            return None
        own, key = level_of(values), rows.tobytes()

        def level(view: int) -> NDArray[np.float64]:
            if view in views:
                return own[:, view - views.start]
            stored = self.block(rows, range(view, view + 1), stage - 1, range(0))
            self._divide(stored, self._beam(rows, None))
            return level_of(stored)[:, 0]

        if key not in self._usual:
            # of views that are missing nothing is known; they count as the darkest
            sampled = np.nan_to_num([level(view) for view in self._sampled_views], nan=0.0)
            self._usual[key] = np.median(sampled, axis=0)
        usual = self._usual[key]
        if not is_low(own, usual).any():
            return None
        # the views before and after tell whether the beam was off or the object grew dark
        first, last, levels = views.start, views.stop, own
        while first > 0 and is_low(levels[:, :1], usual).any():
            first -= 1
            levels = np.concatenate([level(first)[:, None], levels], axis=1)
        while last < total and is_low(levels[:, -1:], usual).any():
            levels = np.concatenate([levels, level(last)[:, None]], axis=1)
            last += 1
        found = without_beam(levels, usual)[:, views.start - first :][:, : len(views)]
        return found if found.any() else None

    def _dead_pixels(self, step: DeadPixels, rows: _Rows, views: range, stage: int, counted: range) -> _Values:
        values = self.block(rows, views, stage - 1, counted)
        faulty = np.zeros((rows.size, values.shape[2]), dtype=np.bool_)
        if self._was_counted(stage):
            faulty |= self._beam(rows, None).below(step.dead_below)
        if step.hot_above > 0:
            key = rows.tobytes()
            if key not in self._hot:
                whole = values if views == self._all_views else None
                self._hot[key] = hot_elements(self._mean_over_views(rows, stage - 1, whole), step.hot_above)
            faulty |= self._hot[key]
        if step.still_below > 0 and self._scan.shape[0] >= FEWEST_VIEWS:
            key = rows.tobytes()
            if key not in self._still:
                whole = values if views == self._all_views else None
                spread = self._spread_over_views(rows, stage - 1, whole)
                self._still[key] = still_elements(spread, step.still_below)
            faulty |= self._still[key]
        self._remember(rows, faulty)
        for row in np.flatnonzero(faulty.any(axis=1)):
            values[row][:, faulty[row]] = np.nan
        # in transmission the line integrals are interpolated, not their exponentials
        through = self._states[stage - 1] is DataState.TRANSMISSION
        floor = self._floor(rows, stage) if through else None
        for row in rows_with_holes(values):
            holes = np.isnan(values[row])
            self._fill(values[row], holes, int(rows[row]), views, counted, None if floor is None else float(floor[row]))
        return values

    def _zingers(self, step: Zingers, rows: _Rows, views: range, stage: int, counted: range) -> _Values:
        attenuated = self._states[stage - 1] is DataState.ATTENUATION

        def clean(values: _Values, known: _Rows, seen: range, wanted: _Rows) -> _Values:
            result, specks = without_zingers(values, step.threshold, step.size, attenuated=attenuated)
            ours = wanted[self._counted[known[wanted]]]
            _, these = self._counted_among(known, seen, counted)
            self.specks += int(np.count_nonzero(specks[np.ix_(ours, these)]))
            return result[wanted]

        return self._beside(clean, rows, views, stage, counted, margin=step.size // 2, views_beside=1, keep_holes=True)

    def _rings(self, step: Rings, rows: _Rows, views: range, stage: int, counted: range) -> _Values:
        result = np.empty((rows.size, len(views), self._scan.shape[2]), dtype=np.float32)
        together = max(BLOCK_BYTES // (4 * self._scan.shape[0] * self._scan.shape[2]), 1)
        # of whole sinograms all rows are kept anyway
        together = rows.size if views == self._all_views else together
        for first in range(0, rows.size, together):
            some = rows[first : first + together]
            values = self.block(some, self._all_views, stage - 1, counted)
            for row, sinogram in enumerate(values):
                holes = np.isnan(sinogram)
                if holes.any():
                    lost = self._fill(sinogram, holes, int(some[row]), self._all_views, counted)
                    fill_between_views(sinogram, lost)
                    if lost.all():
                        continue
                    if self._counted[some[row]]:
                        self.single += int(np.count_nonzero(lost[counted.start : counted.stop])) * holes.shape[1]
                clean = without_rings(sinogram, step.method, step.size, step.strength)
                if self._counted[some[row]] and len(counted):
                    limit = CHANGED * float(np.std(sinogram))
                    changed = np.abs(clean - sinogram)[counted.start : counted.stop] > limit
                    self.without_stripes += int(np.count_nonzero(changed))
                values[row] = clean
            result[first : first + together] = values[:, views.start : views.stop]
        return result

    # --- steps that look at rows beside ---------------------------------------------------------------

    def _beside(
        self,
        work: _Work,
        rows: _Rows,
        views: range,
        stage: int,
        counted: range,
        *,
        margin: int,
        views_beside: int = 0,
        keep_holes: bool = False,
    ) -> _Values:
        """Return wanted rows after a step that looks at `margin` rows and `views_beside` views on both sides."""
        total_views, total_rows, columns = self._scan.shape
        near = np.zeros(total_rows + 1, dtype=np.intp)
        np.add.at(near, np.maximum(rows - margin, 0), 1)
        np.add.at(near, np.minimum(rows + margin + 1, total_rows), -1)
        wide = np.flatnonzero(np.cumsum(near[:-1]) > 0)
        result = np.empty((rows.size, len(views), columns), dtype=np.float32)
        together = max(BLOCK_BYTES // (4 * wide.size * columns), 8 if views_beside else 1)
        if any(isinstance(step, Rings) for step in self._steps[: stage - 1]):
            # whole sinograms are worked on before; in parts they would be worked on again for each
            together = len(views)
        for start in range(views.start, views.stop, together):
            some = range(start, min(start + together, views.stop))
            seen = range(max(some.start - views_beside, 0), min(some.stop + views_beside, total_views))
            ours = range(max(some.start, counted.start), max(min(some.stop, counted.stop), some.start, counted.start))
            values = self.block(wide, seen, stage - 1, ours)
            holes = np.isnan(values) if rows_with_holes(values).size else None
            if holes is not None:
                kept = range(0) if keep_holes else ours
                lost = np.zeros(values.shape[:2], dtype=np.bool_)
                for row in np.flatnonzero(holes.any(axis=(1, 2))):
                    lost[row] = self._fill(values[row], holes[row], int(wide[row]), seen, kept)
            inner = slice(some.start - seen.start, some.stop - seen.start)
            outer = slice(some.start - views.start, some.stop - views.start)
            for run in runs(wide):
                wanted = np.flatnonzero(np.isin(wide[run], rows))
                place = np.searchsorted(rows, wide[run][wanted])
                if holes is not None:
                    fill_from_rows(values[run], lost[run])
                done = work(values[run], wide[run], seen, wanted)
                if holes is not None:
                    # a view that was lost is made up from other views at the end
                    gone = holes[run][wanted] if keep_holes else lost[run][wanted][:, :, None]
                    done = np.where(gone, np.float32(np.nan), done)
                result[place, outer] = done[:, inner]
        return result

    # --- what several steps need --------------------------------------------------------------------

    @property
    def _all_views(self) -> range:
        return range(self._scan.shape[0])

    @property
    def _sampled_views(self) -> NDArray[np.intp]:
        views = self._scan.shape[0]
        return np.unique(np.linspace(0, views - 1, min(views, SAMPLED_VIEWS)).round().astype(np.intp))

    def _counted_among(self, rows: _Rows, views: range, counted: range) -> tuple[_Rows, _Rows]:
        """Return the places of counted rows and counted views among those of a block."""
        first, last = max(counted.start, views.start), min(counted.stop, views.stop)
        return np.flatnonzero(self._counted[rows]), np.arange(first, max(last, first)) - views.start

    def _was_counted(self, stage: int) -> bool:
        """Whether numbers were counts before, so that there is an open beam."""
        return any(isinstance(step, FlatField) for step in self._steps[: stage - 1])

    def _floor(self, rows: _Rows, stage: int) -> NDArray[np.float32]:
        if self._was_counted(stage):
            return self._beam(rows, None).floor
        return np.full(rows.size, TRANSMISSION_FLOOR, dtype=np.float32)

    def _beam(self, rows: _Rows, counts: _Values | None) -> OpenBeam:
        """Return the open beam of rows; `counts` are all that goes into the flat-field step, where it is at hand."""
        key = rows.tobytes()
        if key in self._beams:
            return self._beams[key]
        stage, step = next((n, step) for n, step in enumerate(self._steps) if isinstance(step, FlatField))
        level = None
        if self._scan.flats is None:
            if counts is not None:
                level = brightest(counts)
            else:
                each = [self.block(rows[n : n + 1], self._all_views, stage, range(0)) for n in range(rows.size)]
                level = np.concatenate([brightest(one) for one in each])
        beam = open_beam(self._scan, rows, step.average, level)
        empty = np.flatnonzero(np.isnan(beam.typical) & self._counted[rows])
        if empty.size:
            raise BadInput(
                f"{self._scan.path.name}: detector row {rows[empty[0]]} has no open-beam signal in any of its"
                f" {beam.signal.shape[1]} pixels (open beam minus dark is not positive)",
                "Leave out this row, or check which frames are open-beam and which are dark.",
            )
        self._beams[key] = beam
        return beam

    def _mean_over_views(self, rows: _Rows, stage: int, whole: _Values | None) -> NDArray[np.float64]:
        total = np.zeros((rows.size, self._scan.shape[2]))
        number = np.zeros_like(total)
        views = self._scan.shape[0]
        together = views if whole is not None else max(BLOCK_BYTES // (4 * rows.size * self._scan.shape[2]), 1)
        for first in range(0, views, together):
            some = range(first, min(first + together, views))
            values = self.block(rows, some, stage, range(0)) if whole is None else whole
            good = ~np.isnan(values)
            total += np.where(good, values, 0).sum(axis=1, dtype=np.float64)
            number += good.sum(axis=1)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)

    def _spread_over_views(self, rows: _Rows, stage: int, whole: _Values | None) -> NDArray[np.float64]:
        """Return the standard deviation of elements over some views `(row, column)`, as the detector gave them."""
        number, mean, squares = np.zeros((3, rows.size, self._scan.shape[2]))
        divided = any(isinstance(step, FlatField) and step.monitor for step in self._steps[:stage])
        through = self._states[stage] is DataState.TRANSMISSION
        for view in self._sampled_views:
            values = self.block(rows, range(view, view + 1), stage, range(0)) if whole is None else whole[:, [view]]
            now = values[:, 0].astype(np.float64)
            if divided and through and self._scan.monitor is not None:
                # what stands still was divided by what does not
                now *= self._scan.monitor[view]
            good = ~np.isnan(now)
            number += good
            away = np.where(good, now - mean, 0.0)
            mean += away / np.maximum(number, 1)
            squares += away * np.where(good, now - mean, 0.0)
        return np.sqrt(squares / np.maximum(number, 1))

    def _remember(self, rows: _Rows, faulty: NDArray[np.bool_]) -> None:
        """Keep which elements of counted rows are made up."""
        for place in np.flatnonzero(faulty.any(axis=1) & self._counted[rows]):
            row = int(rows[place])
            self._faulty[row] = faulty[place] | self._faulty.get(row, False)

    def _fill(
        self,
        sinogram: _Values,
        holes: NDArray[np.bool_],
        row: int,
        views: range,
        counted: range,
        floor: float | None = None,
    ) -> NDArray[np.bool_]:
        """Fill holes within views in place, and count them; return which views `(view,)` have no value at all."""
        lost = fill_within_views(sinogram, holes, floor)
        if self._counted[row] and len(counted):
            _, seen = self._counted_among(np.array([row]), views, counted)
            single = holes[seen] & ~lost[seen, None]
            if row in self._faulty:
                single &= ~self._faulty[row]
            self.single += int(np.count_nonzero(single))
        return lost
