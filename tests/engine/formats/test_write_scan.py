"""Scans written as NXtomo and Data Exchange: what our readers and other programs read back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.formats.ct.write_scan import write_dataexchange, write_nxtomo
from equipoise_engine.geometry import ConeBeam, CtGeometry, FanBeam, ParallelBeam
from equipoise_engine.progress import Cancelled, Progress, Watch, unwatched

Writer = Callable[[CtAcquisition, Path, Watch], Path]
WRITERS = [pytest.param(w, id=w.__name__) for w in (write_nxtomo, write_dataexchange)]
VIEWS, ROWS, COLUMNS = 24, 5, 19


def _scan(
    state: DataState = DataState.COUNTS, *, flats: bool = True, geometry: CtGeometry | None = None, **changes: Any
) -> CtAcquisition:
    random = np.random.default_rng(7)
    rows = changes.pop("rows", ROWS)
    angle_rad = np.deg2rad(np.linspace(-90.0, 270.0, VIEWS, endpoint=False))
    if state is DataState.COUNTS:
        projections: NDArray[Any] = random.integers(900, 60000, (VIEWS, rows, COLUMNS)).astype(np.uint16)
    else:
        projections = random.uniform(0.05, 0.95, (VIEWS, rows, COLUMNS)).astype(np.float32)
    parts: dict[str, Any] = {
        "path": Path("scan.xyz"),
        "format": "made here",
        "state": state,
        "projections": projections,
        "geometry": geometry or ParallelBeam(angle_rad, pixel_mm=0.0125, calibrated=True),
        "flats": random.integers(40000, 65000, (3, rows, COLUMNS)).astype(np.uint16) if flats else None,
        "darks": random.uniform(50, 90, (2, rows, COLUMNS)).astype(np.float32) if flats else None,
    }
    return CtAcquisition(**(parts | changes))


def _read(path: Path) -> CtAcquisition:
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    return scan


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_written_is_read_again(write: Writer, tmp_path: Path) -> None:
    monitor = np.random.default_rng(1).uniform(0.9, 1.1, VIEWS)
    scan = _scan(monitor=monitor)
    again = _read(write(scan, tmp_path / "out.h5", unwatched))
    assert np.array_equal(again.projections[:], scan.projections)
    assert np.array_equal(np.asarray(again.flats), np.asarray(scan.flats))
    assert np.array_equal(np.asarray(again.darks), np.asarray(scan.darks))
    assert again.state is DataState.COUNTS
    assert again.geometry.angle_rad == pytest.approx(scan.geometry.angle_rad, abs=1e-14)
    assert again.geometry.calibrated
    assert again.geometry.pixel_mm == pytest.approx(0.0125)
    assert again.guessed == ()
    assert again.monitor is not None
    assert again.monitor == pytest.approx(monitor)
    assert [item.name for item in tmp_path.iterdir()] == ["out.h5"]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("state", [DataState.TRANSMISSION, DataState.ATTENUATION, DataState.COUNTS])
def test_what_the_numbers_mean_is_kept(write: Writer, state: DataState, tmp_path: Path) -> None:
    scan = _scan(state, flats=False)
    again = _read(write(scan, tmp_path / "out.h5", unwatched))
    assert again.state is state
    assert again.projections.dtype == scan.projections.dtype
    assert np.array_equal(again.projections[:], scan.projections)
    assert again.flats is None
    assert "state" not in again.guessed


@pytest.mark.parametrize("write", WRITERS)
def test_big_endian_values_and_lazy_views_are_written(write: Writer, tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(VIEWS, ROWS, COLUMNS)).astype(">f4")
    values[3, 2, 1] = np.nan
    scan = _scan(DataState.ATTENUATION, flats=False, projections=values)
    again = _read(write(scan, tmp_path / "out.h5", unwatched))
    assert np.array_equal(again.projections[:], values, equal_nan=True)


def test_nxtomo_keeps_the_distances_of_a_cone_and_a_fan(tmp_path: Path) -> None:
    angle_rad = np.linspace(0.0, 2 * np.pi, VIEWS, endpoint=False)
    cone = ConeBeam(angle_rad, 200.0, 500.0, 0.8, 0.7, (ROWS - 1) / 2)
    again = _read(write_nxtomo(_scan(geometry=cone), tmp_path / "cone.nxs", unwatched)).geometry
    assert isinstance(again, ConeBeam)
    said = (again.source_axis_mm, again.source_detector_mm, again.pixel_mm, again.row_mm, again.middle_px)
    assert said == pytest.approx((200.0, 500.0, 0.8, 0.7, 2.0))
    assert again.angle_rad == pytest.approx(angle_rad)
    fan = FanBeam(angle_rad, 410.66, 553.74, 0.2 * 560 / COLUMNS)
    again = _read(write_nxtomo(_scan(geometry=fan, rows=1), tmp_path / "fan.nxs", unwatched)).geometry
    assert isinstance(again, FanBeam)
    assert (again.source_axis_mm, again.source_detector_mm) == pytest.approx((410.66, 553.74))


def test_a_beam_that_the_format_has_no_place_for_is_refused(tmp_path: Path) -> None:
    angle_rad = np.linspace(0.0, 2 * np.pi, VIEWS, endpoint=False)
    cone = ConeBeam(angle_rad, 200.0, 500.0, 0.8, 0.8, 2.0)
    with pytest.raises(Unsupported, match="no place for the distances"):
        write_dataexchange(_scan(geometry=cone), tmp_path / "out.h5", unwatched)
    low = ConeBeam(angle_rad, 200.0, 500.0, 0.8, 0.8, 0.0)
    with pytest.raises(Unsupported, match="row 0, not at its middle"):
        write_nxtomo(_scan(geometry=low), tmp_path / "out.h5", unwatched)
    curved = FanBeam(angle_rad, 200.0, 500.0, 0.8, detector="curved")
    with pytest.raises(Unsupported, match="curved"):
        write_nxtomo(_scan(geometry=curved, rows=1), tmp_path / "out.h5", unwatched)
    assert list(tmp_path.iterdir()) == []


def test_nxtomo_is_read_by_another_program(tmp_path: Path) -> None:
    nxtomo = pytest.importorskip("nxtomo.application.nxtomo", reason="the package nxtomo is not installed")
    scan = _scan()
    write_nxtomo(scan, tmp_path / "out.nxs", unwatched)
    other = nxtomo.NXtomo().load(str(tmp_path / "out.nxs"), data_path="entry", detector_data_as="as_numpy_array")
    detector = other.instrument.detector
    assert [int(key.value) for key in detector.image_key_control] == [2, 2, 1, 1, 1, *[0] * VIEWS]
    assert np.array_equal(detector.data[5:], scan.projections)
    angles = other.sample.rotation_angle.to("degree").magnitude
    assert angles[5:] == pytest.approx(np.rad2deg(scan.geometry.angle_rad))
    assert detector.x_pixel_size.to("millimeter").magnitude == pytest.approx(0.0125)


def test_nxtomo_has_what_its_definition_asks_for(tmp_path: Path) -> None:
    write_nxtomo(_scan(), tmp_path / "out.nxs", unwatched)
    with h5py.File(tmp_path / "out.nxs", "r", locking=False) as file:
        assert file["entry/definition"][()] == b"NXtomo"
        for place, kind in (
            ("entry", "NXentry"),
            ("entry/instrument", "NXinstrument"),
            ("entry/instrument/detector", "NXdetector"),
            ("entry/sample", "NXsample"),
            ("entry/data", "NXdata"),
        ):
            assert file[place].attrs["NX_class"] == kind
        assert file["entry/data/data"] == file["entry/instrument/detector/data"]
        assert file["entry/sample/rotation_angle"].attrs["units"] == "degree"
        assert file["entry/instrument/detector/image_key"].shape == (29,)


@pytest.mark.parametrize("write", WRITERS)
def test_cancelling_leaves_the_old_file(write: Writer, tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    write(_scan(), path, unwatched)
    before = path.read_bytes()

    def stop(progress: Progress) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        write(_scan(DataState.ATTENUATION), path, stop)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["out.h5"]


@pytest.mark.parametrize("write", WRITERS)
def test_values_that_read_back_differently_are_noticed(write: Writer, tmp_path: Path) -> None:
    class Changing:
        """A drive that returns other values each time."""

        shape, dtype = (VIEWS, ROWS, COLUMNS), np.dtype(np.float32)
        turn = 0.0

        def __getitem__(self, key: Any) -> Any:
            self.turn += 1.0
            return np.full(self.shape, self.turn, np.float32)[key]

    with pytest.raises(BadInput, match="read back differently"):
        write(_scan(DataState.ATTENUATION, flats=False, projections=Changing()), tmp_path / "out.h5", unwatched)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
def test_a_measured_scan_is_converted(write: Writer, shared_data: Path, tmp_path: Path) -> None:
    scan = _read(shared_data / "ct-tooth-dxchange" / "tooth.h5")
    again = _read(write(scan, tmp_path / "tooth.h5", unwatched))
    assert np.array_equal(again.projections[:], scan.projections[:])
    assert np.array_equal(np.asarray(again.flats), np.asarray(scan.flats))
    assert again.geometry.angle_rad == pytest.approx(scan.geometry.angle_rad)
