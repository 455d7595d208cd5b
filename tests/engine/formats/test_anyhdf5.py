"""HDF5 files of no known format: what is opened, what the user is asked, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, EquipoiseError, Incomplete, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.recipe import AngleRange, Known, Role

VIEWS, ROWS, COLUMNS = 40, 18, 32
Maker = Callable[..., Path]


def _object() -> np.ndarray:
    """Return the counts of balls of different sizes, one for each row `(view, row, column)`."""
    angle = np.linspace(0.0, np.pi, VIEWS, endpoint=False)[:, None, None]
    row, column = np.arange(ROWS)[:, None], np.arange(COLUMNS)
    middle = (COLUMNS - 1) / 2 + 5.0 * np.cos(angle) + 2.0 * np.sin(angle)
    radius = 1.5 + 0.35 * row
    chord = 2.0 * np.sqrt(np.maximum(radius**2 - (column - middle) ** 2, 0.0))
    return np.round(20000 * np.exp(-0.1 * chord)).astype(np.uint16)


@pytest.fixture
def plain(tmp_path: Path) -> Maker:
    """Write an HDF5 file of the datasets given by name."""

    def make(**datasets: Any) -> Path:
        path = tmp_path / "plain.h5"
        with h5py.File(path, "w") as file:
            for name, value in datasets.items():
                file[name.replace("__", "/")] = value
        return path

    return make


def _read(path: Path, known: Known | None = None) -> CtAcquisition:
    scan = read(path, known)
    assert isinstance(scan, CtAcquisition)
    return scan


def _known(*roles: tuple[str, str], **changes: Any) -> Known:
    return Known(roles=tuple(Role(role=role, source=source) for role, source in roles), **changes)


def test_the_only_stack_of_a_file_is_its_projections(plain: Maker) -> None:
    values = _object()
    path = plain(
        measurement__images=values,
        measurement__flat_field=np.full((3, ROWS, COLUMNS), 20000, np.uint16),
        measurement__darks=np.zeros((2, ROWS, COLUMNS), np.uint16),
        measurement__angle=np.arange(VIEWS) * 180.0 / VIEWS,
        temperature=np.ones(VIEWS),
    )
    scan = _read(path)
    assert scan.format == "HDF5"
    assert np.array_equal(scan.projections[:], values)
    assert scan.flats is not None
    assert scan.darks is not None
    assert (scan.flats.shape[0], scan.darks.shape[0]) == (3, 2)
    assert np.rad2deg(scan.geometry.angle_rad) == pytest.approx(np.arange(VIEWS) * 180.0 / VIEWS)
    assert scan.state is DataState.COUNTS
    assert scan.guessed == ()
    said = {match.role: match.source for match in scan.matched}
    assert said["angles"] == "/measurement/angle"
    assert said["flats"] == "/measurement/flat_field"
    assert {source.name for source in scan.sources} >= {"/measurement/images", "/temperature"}


def test_sinograms_are_told_by_the_number_of_angles(plain: Maker) -> None:
    values = _object()
    scan = _read(plain(data=values.swapaxes(0, 1), theta=np.arange(VIEWS) * 4.5))
    assert scan.shape == values.shape
    assert np.array_equal(scan.projections[5:9, 2], values[5:9, 2])


def test_the_user_says_what_an_image_is(plain: Maker) -> None:
    values = _object()
    scan = _read(plain(data=values.swapaxes(0, 1)), Known(layout="sinograms"))
    assert np.array_equal(scan.projections[:], values)
    assert "angles" in scan.guessed


def test_a_detector_is_not_many_times_as_high_as_wide(plain: Maker) -> None:
    values = np.random.default_rng(0).integers(1, 9, (700, 20, 24)).astype(np.uint16)
    scan = _read(plain(data=values))
    assert scan.shape == (700, 20, 24)
    assert "allow nothing else" in scan.matched[0].reason


def test_several_stacks_are_a_choice_for_the_user(plain: Maker) -> None:
    values = _object()
    path = plain(first=values, second=values + 1, theta=np.arange(VIEWS) * 4.5)
    with pytest.raises(Incomplete, match=r"not clear: /first .*, /second") as caught:
        read(path)
    assert caught.value.missing == ("projections",)
    assert [source.name for source in caught.value.sources] == ["/first", "/second"]
    scan = _read(path, _known(("projections", "/second#2:30"), ("flats", "#0:2")))
    assert np.array_equal(scan.projections[:], values[2:30] + 1)
    assert scan.flats is not None
    assert np.array_equal(scan.flats[:], values[:2] + 1)


def test_a_name_settles_it(plain: Maker) -> None:
    values = _object()
    scan = _read(plain(projections=values, gain=values))
    assert scan.matched[0].source == "/projections"


def test_a_table_is_a_sinogram_only_by_its_name(plain: Maker, tmp_path: Path) -> None:
    values = np.ascontiguousarray(_object()[:, 9].astype(np.float32))
    with pytest.raises(Incomplete, match=r"/table \(40, 32\)"):
        read(plain(table=values))
    scan = _read(tmp_path / "plain.h5", _known(("projections", "/table"), angles=AngleRange(start_deg=0, stop_deg=180)))
    assert np.array_equal(scan.projections[:, 0], values)
    del scan
    assert _read(plain(sinogram=values)).shape == (VIEWS, 1, COLUMNS)


def test_angles_and_monitor_are_named(plain: Maker) -> None:
    current = np.linspace(200.0, 180.0, VIEWS)
    path = plain(data=_object(), positions=np.linspace(3.0, 4.0, VIEWS), current=current, short=np.ones(3))
    scan = _read(path, _known(("angles", "/positions"), ("monitor", "/current")))
    assert np.rad2deg(scan.geometry.angle_rad[[0, -1]]) == pytest.approx([3.0, 4.0])
    assert scan.monitor == pytest.approx(current / current.mean())
    with pytest.raises(BadInput, match="40 projections but 3 values in /short; no value for index 3"):
        read(path, _known(("monitor", "/short")))
    (path.parent / "turned.txt").write_text("\n".join(str(0.5 * view) for view in range(VIEWS)))
    scan = _read(path, _known(("angles", "turned.txt")))
    assert np.rad2deg(scan.geometry.angle_rad[-1]) == pytest.approx(0.5 * (VIEWS - 1))


@pytest.mark.parametrize(
    ("role", "source", "said"),
    [
        ("projections", "/nothing", "no /nothing"),
        ("projections", "/text", "numbers of kind"),
        ("projections", "/theta", "axes are needed"),
        ("projections", "", "cannot do without"),
        ("flats", "/nothing", "no /nothing"),
        ("flats", "/theta", "axes are needed"),
        ("darks", "#0:900", "40 frames"),
        ("angles", "/nothing", "no /nothing"),
        ("angles", "/theta#0:99", "goes beyond"),
        ("kspace", "/data", "role 'kspace'"),
    ],
)
def test_what_cannot_have_a_role_is_refused(plain: Maker, role: str, source: str, said: str) -> None:
    path = plain(data=_object(), text=[[b"a", b"b"]], theta=np.arange(VIEWS) * 4.5)
    with pytest.raises(EquipoiseError, match=rf"plain\.h5.*({said})"):
        read(path, _known((role, source)))


def test_files_without_images_and_results_are_refused(plain: Maker) -> None:
    with pytest.raises(Unsupported, match="without images"):
        read(plain(table=np.ones((3, 4)), text=b"hello"))
    path = plain(entry__data=_object(), entry__definition="NXtomoproc")
    with pytest.raises(Unsupported, match="is a reconstruction"):
        read(path)
    with pytest.raises(Incomplete, match="/reconstruction"):
        read(plain(reconstruction=_object().astype(np.float32)))


def test_links_to_other_files_are_sources(plain: Maker, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "detector.h5", "w") as file:
        file["entry/frames"] = _object()
        file["entry/notes"] = b"none"
    path = plain(theta=np.arange(VIEWS) * 4.5)
    with h5py.File(path, "r+") as file:
        file["linked"] = h5py.ExternalLink("detector.h5", "/entry")
        file["gone"] = h5py.ExternalLink("gone.h5", "/entry")
    scan = _read(path)
    assert scan.matched[0].source == "/linked/frames"
    assert np.array_equal(scan.projections[:], _object())
