"""The selected part of a scan: what is read of it, and where things lie in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState, MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import Cartesian, ConeBeam, FanBeam, ParallelBeam
from equipoise_engine.preprocess.attenuation import attenuation
from equipoise_engine.preprocess.selection import file_column, rows_apart, selected, selected_column
from equipoise_engine.recipe import Selection, Span

VIEWS, ROWS, COLUMNS = 12, 6, 20


@dataclass
class Counting:
    """An array that remembers how many of its values were read."""

    values: np.ndarray
    read: int = field(default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def __getitem__(self, key: Any, /) -> Any:
        part = self.values[key]
        self.read += part.size
        return part


def scan_of(values: Any, geometry: Any = None, **parts: Any) -> CtAcquisition:
    angles = np.radians(np.arange(values.shape[0]) * 15.0)
    beam = ParallelBeam(angles, 0.5, 9.0, calibrated=True) if geometry is None else geometry(angles)
    return CtAcquisition(
        path=Path("made.h5"), format="made", state=DataState.COUNTS, projections=values, geometry=beam, **parts
    )


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(100, 60000, (VIEWS, ROWS, COLUMNS)).astype(np.uint16)


def test_all_of_a_scan_is_the_scan(values: np.ndarray) -> None:
    scan = scan_of(values)
    assert selected(scan, Selection()) is scan


def test_views_rows_and_columns_are_cut(values: np.ndarray) -> None:
    flats, darks, monitor = values[:2] + 1, values[:3] // 2, np.linspace(1.0, 0.5, VIEWS)
    scan = scan_of(values, flats=flats, darks=darks, monitor=monitor)
    chosen = Selection(views=Span(first=1, last=11, step=3), rows=Span(first=2, step=2), columns=Span(first=3, last=17))
    part = selected(scan, chosen)
    assert isinstance(part, CtAcquisition)
    assert part.shape == (4, 2, 14)
    np.testing.assert_array_equal(part.projections[:], values[1:11:3, 2::2, 3:17])
    np.testing.assert_array_equal(part.projections[2, ::-1, 4], values[7, 4:1:-2, 7])
    np.testing.assert_array_equal(part.projections[np.array([3, 0, 1])], values[[10, 1, 4], 2::2, 3:17])
    assert part.projections.dtype == np.uint16
    assert part.flats is not None
    assert part.darks is not None
    assert part.monitor is not None
    np.testing.assert_array_equal(part.flats[:], flats[:, 2::2, 3:17])
    np.testing.assert_array_equal(part.darks[1], darks[1, 2::2, 3:17])
    np.testing.assert_array_equal(part.monitor, monitor[1:11:3])
    np.testing.assert_array_equal(part.geometry.angle_rad, scan.geometry.angle_rad[1:11:3])
    assert part.geometry.centre_px == 6.0
    assert part.recipe.selection == chosen
    assert part.matched[-1].role == "selection"
    assert part.matched[-1].reason == "views 1 to 10 of 12, every 3.; rows 2 to 4 of 6, every 2.; columns 3 to 16 of 20"


def test_elements_are_put_together_by_their_mean(values: np.ndarray) -> None:
    scan = scan_of(values, flats=values[:2], darks=values[2:4])
    part = selected(scan, Selection(columns=Span(first=1), bin=3))
    assert isinstance(part, CtAcquisition)
    assert part.shape == (VIEWS, 2, 6)
    wanted = values[:, :, 1:19].reshape(VIEWS, 2, 3, 6, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(part.projections[:], wanted, rtol=1e-6)
    np.testing.assert_allclose(part.projections[5, 1], wanted[5, 1], rtol=1e-6)
    assert part.projections.dtype == np.float32
    assert part.flats is not None
    np.testing.assert_allclose(part.flats[:], wanted[:2], rtol=1e-6)
    assert part.geometry.pixel_mm == pytest.approx(1.5)
    assert part.geometry.centre_px == pytest.approx((9 - 1 - 1) / 3)
    assert "3 columns put together (1 at the end left out)" in part.matched[-1].reason


def test_a_single_row_stays_one(values: np.ndarray) -> None:
    part = selected(scan_of(values[:, :1]), Selection(bin=4))
    assert isinstance(part, CtAcquisition)
    assert part.shape == (VIEWS, 1, 5)
    np.testing.assert_allclose(part.projections[:], values[:, :1].reshape(VIEWS, 1, 5, 4).mean(axis=3), rtol=1e-6)
    # and rows that are too few to be put together stay as they are
    assert selected(scan_of(values[:, :3]), Selection(bin=4)).shape == (VIEWS, 3, 5)


def test_what_is_not_finite_does_not_count(values: np.ndarray) -> None:
    holes = values.astype(np.float32)
    holes[0, 0, 0] = np.nan
    holes[1, :2, :2] = np.inf
    part = selected(scan_of(holes), Selection(bin=2))
    assert isinstance(part, CtAcquisition)
    assert part.projections[0, 0, 0] == pytest.approx(holes[0, [0, 1, 1], [1, 0, 1]].mean())
    assert np.isnan(part.projections[1, 0, 0])
    assert np.isfinite(part.projections[2:]).all()


@pytest.mark.parametrize("together", [1, 2])
def test_only_what_is_looked_at_is_read(values: np.ndarray, together: int) -> None:
    counting = Counting(values)
    part = selected(scan_of(counting), Selection(views=Span(step=2), columns=Span(first=4, last=16), bin=together))
    assert isinstance(part, CtAcquisition)
    assert counting.read == 0
    part.projections[:, 1:2, :]
    assert counting.read == 6 * together * 12
    part.projections[3]
    assert counting.read == 6 * together * 12 + ROWS * 12
    # rows that are far apart are not read with all that lies between them
    counting.read = 0
    part.projections[:, ::2, :]
    assert counting.read == 6 * 12 * (3 if together == 1 else 4)


def test_a_part_of_a_file_is_as_the_part_of_an_array(values: np.ndarray, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["data"] = values
        chosen = Selection(views=Span(first=2, step=4), rows=Span(first=1), bin=2)
        one = selected(scan_of(file["data"]), chosen)
        other = selected(scan_of(values), chosen)
        assert isinstance(one, CtAcquisition)
        assert isinstance(other, CtAcquisition)
        np.testing.assert_array_equal(one.projections[:, ::-1], other.projections[:, ::-1])


def test_attenuation_of_a_part_is_the_part_of_the_attenuation(values: np.ndarray) -> None:
    scan = scan_of(values // 2, flats=np.full((2, ROWS, COLUMNS), 50000.0), darks=np.zeros((1, ROWS, COLUMNS)))
    part = selected(scan, Selection(views=Span(first=2), rows=Span(first=1, last=4), columns=Span(last=10)))
    assert isinstance(part, CtAcquisition)
    whole = attenuation(scan, slice(None))
    np.testing.assert_allclose(attenuation(part, slice(None)), whole[1:4, 2:, :10], rtol=1e-6)


def test_columns_of_the_file_and_of_the_part_are_told_from_each_other() -> None:
    chosen = Selection(columns=Span(first=10, last=90), bin=4)
    # the middle of the first four columns taken
    assert selected_column(chosen, 11.5) == 0.0
    assert file_column(chosen, 0.0) == 11.5
    for place in (0.0, 3.25, 17.5):
        assert selected_column(chosen, file_column(chosen, place)) == pytest.approx(place)


def test_lines_of_diverging_beams_stay_where_they_are(values: np.ndarray) -> None:
    chosen = Selection(views=Span(step=3), rows=Span(first=1, last=6), columns=Span(first=3, last=18), bin=2)
    cone = scan_of(values, lambda a: ConeBeam(a, 60.0, 90.0, 0.4, 0.3, 2.25, 9.5))
    part = selected(cone, chosen)
    old, new = cone.geometry, part.geometry
    assert isinstance(old, ConeBeam)
    assert isinstance(new, ConeBeam)
    assert (new.pixel_mm, new.row_mm) == pytest.approx((0.8, 0.6))
    # an element put together lies in the middle of its parts
    columns, rows = np.arange(7.0), np.arange(2.0)
    old_ray = old.vectors().rays(3 + 2 * np.repeat(columns, 2) + 0.5, 1 + 2 * np.tile(rows, 7) + 0.5)
    new_ray = new.vectors().rays(np.repeat(columns, 2), np.tile(rows, 7))
    np.testing.assert_allclose(new_ray[0], old_ray[0][::3], atol=1e-12)
    np.testing.assert_allclose(new_ray[1], old_ray[1][::3], atol=1e-12)
    fan = scan_of(values, lambda a: FanBeam(a, 60.0, 90.0, 0.4, 9.5, detector="curved"))
    curved = selected(fan, chosen).geometry
    assert isinstance(curved, FanBeam)
    _, old_aim = fan.geometry.vectors().rays(3 + 2 * columns + 0.5, np.zeros(7))
    np.testing.assert_allclose(curved.vectors().rays(columns, np.zeros(7))[1], old_aim[::3], atol=1e-12)
    thinned = selected(cone, Selection(rows=Span(first=1, step=2))).geometry
    assert isinstance(thinned, ConeBeam)
    assert (thinned.row_mm, thinned.middle_px) == pytest.approx((0.6, 0.625))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (Selection(views=Span(last=13)), r"made\.h5: views 0 to 13 cannot be taken: the scan has 12"),
        (Selection(rows=Span(first=6)), r"rows 6 to 6 cannot be taken: the scan has 6"),
        (Selection(columns=Span(first=5, last=5)), r"columns 5 to 5 cannot be taken"),
        (Selection(columns=Span(step=2)), r"every 2-th column cannot be taken alone"),
        (Selection(bin=16), r"20 columns put together by 16 leave 1; 2 are the fewest"),
        (Selection(columns=Span(first=12)), r"the rotation axis at column 9 lies outside the columns 12 to 20"),
    ],
)
def test_what_cannot_be_taken_is_refused(values: np.ndarray, chosen: Selection, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        selected(scan_of(values), chosen)


def test_slices_of_kspace_are_cut() -> None:
    random = np.random.default_rng(0)
    kspace = Counting((random.normal(size=(9, 2, 8, 8)) + 0j).astype(np.complex64))
    geometry = Cartesian(np.ones((8, 8), dtype=bool), (8.0, 8.0), slice_mm=2.0)
    navigators = np.arange(9.0)[:, None, None, None] * np.ones((9, 3, 2, 8), dtype=np.complex64)
    scan = MriAcquisition(
        path=Path("made.h5"), format="made", kspace=kspace, geometry=geometry, navigators=navigators, noise=kspace
    )
    part = selected(scan, Selection(rows=Span(first=1, last=8, step=3)))
    assert isinstance(part, MriAcquisition)
    assert part.shape == (3, 2, 8, 8)
    assert kspace.read == 0
    np.testing.assert_array_equal(part.kspace[1:], kspace.values[[4, 7]])
    assert kspace.read == 2 * 2 * 64
    assert part.navigators is not None
    np.testing.assert_array_equal(part.navigators[:, 0, 0, 0], [1, 4, 7])
    assert part.noise is kspace
    assert part.geometry.slice_mm == 6.0
    assert part.matched[-1].reason == "slices 1 to 7 of 9, every 3."
    with pytest.raises(BadInput, match="slices 3 to 12 cannot be taken: the scan has 9"):
        selected(scan, Selection(rows=Span(first=3, last=12)))
    for wrong in (Selection(bin=2), Selection(views=Span(step=2)), Selection(columns=Span(last=4))):
        with pytest.raises(BadInput, match="only slices can be selected"):
            selected(scan, wrong)


def test_the_axis_of_a_part_is_found_where_the_file_has_it(values: np.ndarray) -> None:
    bare = scan_of(values)
    bare = replace(bare, geometry=replace(bare.geometry, centre_px=None))
    part = selected(bare, Selection(columns=Span(first=4), bin=2))
    assert isinstance(part, CtAcquisition)
    assert part.geometry.centre_px is None


def test_a_part_of_a_part_says_what_it_is_of_the_file(values: np.ndarray) -> None:
    first = Selection(views=Span(first=1, step=2), rows=Span(first=1, last=6), columns=Span(first=2, last=19), bin=2)
    then = Selection(views=Span(first=1, last=5, step=3), rows=Span(first=1), columns=Span(first=1, last=7), bin=3)
    one = selected(scan_of(values), first)
    both = selected(one, then)
    assert isinstance(one, CtAcquisition)
    assert isinstance(both, CtAcquisition)
    assert both.full_shape == values.shape
    assert both.rows_together == 2
    found = both.recipe.selection
    assert found.views == Span(first=3, last=10, step=6)
    assert found.rows == Span(first=3, last=6)
    assert found.columns == Span(first=4, last=16)
    assert found.bin == 6
    assert both.projections[:].shape == (2, 1, 2)
    part = values[3:10:6, 3:5, 4:16].reshape(2, 1, 2, 2, 6).mean(axis=(2, 4))
    np.testing.assert_allclose(both.projections[:], part, rtol=1e-6)
    assert rows_apart(both) == pytest.approx(2 / 6)
    assert file_column(found, both.geometry.centre_px or 0.0) == pytest.approx(9.0)
    with pytest.raises(BadInput, match="put together every 2-th"):
        selected(one, Selection(rows=Span(step=2)))
