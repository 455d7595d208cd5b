"""`formats.read`: what is recognised by content, and one clear message for everything else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState, MriAcquisition
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.recipe import Known

Maker = Callable[..., Path]


def test_read_recognises_content_not_name(dataexchange: Maker, fastmri: Maker, tmp_path: Path) -> None:
    ct = dataexchange().rename(tmp_path / "photo.jpg")
    mri = fastmri().rename(tmp_path / "notes")
    assert read(ct).format == "Data Exchange HDF5"
    assert read(mri).format == "fastMRI-style HDF5"


def test_read_passes_the_given_centre_on(dataexchange: Maker, nxtomo: Maker) -> None:
    for path in (dataexchange(), nxtomo()):
        scan = read(path, Known(centre_px=7.25))
        assert isinstance(scan, CtAcquisition)
        assert scan.geometry.centre_px == 7.25


def test_read_takes_the_only_scan_of_a_folder(dataexchange: Maker, tmp_path: Path) -> None:
    path = dataexchange()
    (tmp_path / "readme.txt").write_text("about the scan")
    assert read(tmp_path).path == path


def test_read_refuses_a_folder_with_two_scans(dataexchange: Maker, nxtomo: Maker, tmp_path: Path) -> None:
    dataexchange()
    nxtomo()
    with pytest.raises(BadInput, match=r"2 files that may be scans \(scan\.h5, scan\.nxs\)"):
        read(tmp_path)


def test_read_refuses_a_folder_without_scans(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(BadInput, match="no scan in this folder") as caught:
        read(tmp_path)
    assert "Data Exchange" in caught.value.hint


def test_read_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.h5: there is no such file"):
        read(tmp_path / "gone.h5")


def test_read_names_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.h5").touch()
    with pytest.raises(BadInput, match=r"empty\.h5: the file is empty \(0 bytes\)"):
        read(tmp_path / "empty.h5")


@pytest.mark.parametrize(
    ("start", "said"),
    [(b"\x89PNG", "a PNG image"), (b"\x00" * 128 + b"DICM", "a DICOM image"), (b"hello", "an unknown kind")],
)
def test_read_says_what_another_kind_of_file_is(tmp_path: Path, start: bytes, said: str) -> None:
    path = tmp_path / "thing"
    path.write_bytes(start + b"\0" * 200)
    with pytest.raises(Unsupported, match=said) as caught:
        read(path)
    assert "fastMRI" in caught.value.hint


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_read_names_a_truncated_file_and_its_size(dataexchange: Maker, share: float) -> None:
    path = dataexchange(data=np.ones((12, 30, 160), np.uint16), data_white=np.ones((4, 30, 160)), data_dark=None)
    size = int(path.stat().st_size * share)
    os.truncate(path, size)
    with pytest.raises(BadInput, match=rf"scan\.h5: .*{size} bytes"):
        read(path)


def test_read_refuses_another_kind_of_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file["layer/weights"] = np.zeros(3)
    with pytest.raises(Unsupported, match=r"unknown kind \(it holds layer\)"):
        read(tmp_path / "net.h5")


def test_read_does_not_lock_or_write(dataexchange: Maker) -> None:
    path = dataexchange()
    before = path.read_bytes(), path.stat().st_mtime_ns
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    np.asarray(scan.projections[:])
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    # another program could not open it for writing while a reader held a lock
    other = "import h5py, sys; h5py.File(sys.argv[1], 'r+').close()"
    subprocess.run([sys.executable, "-c", other, str(path)], check=True, timeout=60)


def test_read_tooth(shared_data: Path) -> None:
    scan = read(shared_data / "ct-tooth-dxchange" / "tooth.h5")
    assert isinstance(scan, CtAcquisition)
    assert (scan.state, scan.shape, scan.slices) == (DataState.COUNTS, (181, 2, 640), 2)
    assert scan.flats is not None
    assert scan.darks is not None
    assert scan.flats.shape == scan.darks.shape == (10, 2, 640)
    assert np.rad2deg(scan.geometry.angle_rad[-1]) == pytest.approx(179.0055, abs=1e-3)
    assert {match.role for match in scan.matched} == {"projections", "flats", "darks", "angles"}


def test_read_nxtomo_of_a_synchrotron(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "i13_24737_nxtomo.nxs")
    assert isinstance(scan, CtAcquisition)
    assert scan.shape == (91, 135, 160)
    assert np.rad2deg(scan.geometry.angle_rad[[0, -1]]) == pytest.approx([-88.2, 91.8], abs=1e-3)
    assert any("repeats it mirrored" in warning for warning in scan.warnings)
    # frame 0 is the dark and frame 1 the flat: the first projection is frame 2
    with h5py.File(shared_data / "derived" / "i13_24737_nxtomo.nxs", "r", locking=False) as file:
        frames = file["entry1/tomo_entry/data/data"]
        assert np.array_equal(scan.projections[0], frames[2])
        assert scan.flats is not None
        assert np.array_equal(scan.flats[0], frames[1])


def test_read_brain(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "brain8ch_fastmri_like.h5")
    assert isinstance(scan, MriAcquisition)
    assert scan.shape == (1, 8, 230, 180)
    assert scan.kspace.dtype == np.complex64
    assert scan.geometry.sampled.all()
    assert not scan.geometry.calibrated


def test_read_says_which_linked_file_is_missing(shared_data: Path) -> None:
    with pytest.raises(BadInput, match=r"gts_theta_value_set is stored in another file, k11.*EtherCAT\.h5"):
        read(shared_data / "ct-k11-nxs" / "k11-18014.nxs")
    with pytest.raises(BadInput, match=r"24888\.nxs: .*pco1-24888\.hdf, which is missing"):
        read(shared_data / "hard-hdf5" / "24888.nxs")


def test_read_says_that_a_nexus_file_is_no_tomography(shared_data: Path) -> None:
    with pytest.raises(Unsupported, match=r"IMAT00008300\.nxs: .*TOFRAW, not tomography"):
        read(shared_data / "hard-hdf5" / "IMAT00008300.nxs")


_EACH_IN_TURN = """
import sys
from pathlib import Path
from equipoise_engine.errors import EquipoiseError
from equipoise_engine.formats import read
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read(path)
        print("read", path.name)
    except EquipoiseError as error:
        assert path.name in error.message, error.message
        print("refused", path.name)
"""


def test_read_survives_malformed_hdf5(shared_data: Path) -> None:
    folder = shared_data / "hard-hdf5"
    done = subprocess.run(
        [sys.executable, "-c", _EACH_IN_TURN, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(list(folder.iterdir()))
    assert "read cve" not in done.stdout


def test_errors_name_the_file(dataexchange: Maker) -> None:
    path = dataexchange(data=None, data_white=np.ones((1, 3, 16)))
    with pytest.raises(EquipoiseError, match=r"scan\.h5"):
        read(path)
