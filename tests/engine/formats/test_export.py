"""The three writers: what other programs read back, and what an error leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
import tifffile

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.results import tiff
from equipoise_engine.formats.results.dicom import write_dicom
from equipoise_engine.formats.results.nexus import write_hdf5
from equipoise_engine.formats.results.tiff import write_tiff
from equipoise_engine.progress import Cancelled, Progress, Watch, unwatched
from equipoise_engine.volume import Volume

Writer = Callable[[Volume, Path, Watch], list[Path]]
WRITERS = [pytest.param(w, id=w.__name__) for w in (write_tiff, write_dicom, write_hdf5)]
SHAPE = (4, 11, 17)


def _volume(modality: str = "ct", *, calibrated: bool = True, level: float = 0.02, seed: int = 0) -> Volume:
    """Return a volume that no flip or transposition leaves the same."""
    data = np.random.default_rng(seed).normal(0.0, 0.1, SHAPE)
    data += np.linspace(0, 1, SHAPE[2]) + 2 * np.linspace(0, 1, SHAPE[1])[:, None]
    data += 3 * np.linspace(0, 1, SHAPE[0])[:, None, None]
    if modality == "mri":
        data = np.abs(data)
    return Volume(
        data=(level * data).astype(np.float32),
        voxel_mm=(2.0, 0.5, 0.25) if calibrated else (1.0, 1.0, 1.0),
        modality=modality,
        calibrated=calibrated,
        provenance={"method": "tv", "scan": "tooth.h5", "settings": {"iterations": 40}},
        first_slice=3,
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what other programs read ---------------------------------------------------------


def test_tiff_reads_back_exactly_with_size_and_provenance(tmp_path: Path) -> None:
    volume = _volume()
    assert write_tiff(volume, tmp_path / "out.tif", unwatched) == [tmp_path / "out.tif"]
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_imagej
        assert np.array_equal(file.asarray(), volume.data)
        assert len(file.pages) == SHAPE[0]
        metadata = file.imagej_metadata
        assert metadata is not None
        assert (metadata["unit"], metadata["spacing"], metadata["slices"]) == ("mm", 2.0, SHAPE[0])
        across, down = (file.pages[0].tags[name].value for name in ("XResolution", "YResolution"))
        assert (across[1] / across[0], down[1] / down[0]) == pytest.approx((0.25, 0.5))
        info = json.loads(metadata["Info"])
    assert info["provenance"] == volume.provenance
    assert (info["unit"], info["first_slice"]) == ("1/mm", 3)


def test_tiff_without_calibration_counts_pixels(tmp_path: Path) -> None:
    write_tiff(_volume(calibrated=False), tmp_path / "out.tif", unwatched)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.imagej_metadata is not None
        assert file.imagej_metadata["unit"] == "pixel"


def test_tiff_keeps_values_that_are_not_finite(tmp_path: Path) -> None:
    volume = _volume()
    volume.data[1, 2, 3], volume.data[2, 0, 0] = np.nan, np.inf
    write_tiff(volume, tmp_path / "out.tif", unwatched)
    assert np.array_equal(tifffile.imread(tmp_path / "out.tif"), volume.data, equal_nan=True)


def test_tiff_of_a_large_volume_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "MAX_CLASSIC_BYTES", 1000)
    volume = _volume()
    write_tiff(volume, tmp_path / "out.tif", unwatched)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_bigtiff
        assert np.array_equal(file.asarray(), volume.data)
        assert json.loads(file.pages[0].description)["provenance"] == volume.provenance
        resolution = file.pages[0].tags["XResolution"].value
        assert resolution[1] / resolution[0] == pytest.approx(0.025)  # centimetres


def test_hdf5_reads_back_exactly(tmp_path: Path) -> None:
    volume = _volume()
    write_hdf5(volume, tmp_path / "out.h5", unwatched)
    with h5py.File(tmp_path / "out.h5", "r") as file:
        assert file["entry/definition"][()] == b"NXtomoproc"
        assert np.array_equal(file["entry/data/data"][:], volume.data)
        assert file["entry/data/data"].attrs["units"] == "1/mm"
        assert file["entry/data/z"][:] == pytest.approx([6.0, 8.0, 10.0, 12.0])
        assert file["entry/data/x"][:] == pytest.approx((np.arange(17) - 8) * 0.25)
        record = json.loads(file["entry/reconstruction/parameters/provenance"][()])
    assert record["provenance"] == volume.provenance


@pytest.mark.parametrize("modality", ["ct", "mri"])
def test_dicom_reads_back_in_order_and_within_half_a_step(tmp_path: Path, modality: str) -> None:
    volume = _volume(modality)
    paths = write_dicom(volume, tmp_path / "series", unwatched)
    assert [p.name for p in paths] == [f"slice_{i:05d}.dcm" for i in range(SHAPE[0])]
    images = [pydicom.dcmread(path) for path in paths]
    images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    if modality == "ct":
        slopes = {(float(image.RescaleSlope), float(image.RescaleIntercept)) for image in images}
    else:
        maps = [image.RealWorldValueMappingSequence[0] for image in images]
        slopes = {(m.RealWorldValueSlope, m.RealWorldValueIntercept) for m in maps}
        assert {m.RealWorldValueIntercept for m in maps} == {0.0}
    assert len(slopes) == 1
    slope, intercept = slopes.pop()
    values = np.stack([image.pixel_array for image in images]) * slope + intercept
    assert np.abs(values - volume.data).max() <= 0.5001 * slope
    assert slope < 1.01 * np.ptp([*volume.data.ravel(), 0.0]) / 65532


@pytest.mark.parametrize("modality", ["ct", "mri"])
def test_dicom_says_what_it_is_and_names_nobody(tmp_path: Path, modality: str) -> None:
    paths = write_dicom(_volume(modality), tmp_path / "series", unwatched)
    images = [pydicom.dcmread(path) for path in paths]
    assert len({image.SOPInstanceUID for image in images}) == SHAPE[0]
    assert len({(image.SeriesInstanceUID, image.FrameOfReferenceUID) for image in images}) == 1
    image = images[1]
    assert image.SOPClassUID.name == ("CT Image Storage" if modality == "ct" else "MR Image Storage")
    assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert "Not for diagnostic use" in image.ImageComments
    assert [float(v) for v in image.PixelSpacing] == [0.5, 0.25]
    assert [float(v) for v in image.ImagePositionPatient] == [-2.0, -2.5, 8.0]
    assert [float(v) for v in image.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
    assert (str(image.PatientName), image.PatientBirthDate, image.PatientSex) == ("Anonymous^", "", "")
    assert paths[0].read_bytes()[:128] == b"\0" * 128


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("modality", ["ct", "mri"])
@pytest.mark.parametrize("level", [1e-6, 0.02, 3e4, 0.0])
def test_dicom_passes_dciodvfy(tmp_path: Path, modality: str, calibrated: bool, level: float) -> None:
    paths = write_dicom(_volume(modality, calibrated=calibrated, level=level), tmp_path / "series", unwatched)
    for path in (paths[0], paths[-1]):
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, timeout=60)
        said = done.stdout + done.stderr
        assert "Image" in said
        assert "Error" not in said, said
        assert "Warning" not in said, said


def test_dicom_refuses_values_that_are_not_finite(tmp_path: Path) -> None:
    volume = _volume()
    volume.data[0, 0, 0] = np.nan
    with pytest.raises(BadInput, match="1 of 748 values are not finite"):
        write_dicom(volume, tmp_path / "series", unwatched)
    assert not list(tmp_path.iterdir())


# --- what an error leaves behind -----------------------------------------------------


@pytest.mark.parametrize("write", WRITERS)
def test_progress_covers_writing_and_reading_back(tmp_path: Path, write: Writer) -> None:
    seen: list[Progress] = []
    write(_volume(), tmp_path / "out", seen.append)
    assert [p.step for p in seen] == list(range(1, 9))
    assert {(p.stage, p.total) for p in seen} == {("write", 8)}


@pytest.mark.parametrize("at", [1, 3, 4, 6, 8])
@pytest.mark.parametrize("write", WRITERS)
def test_cancelling_leaves_the_old_result_and_nothing_else(tmp_path: Path, write: Writer, at: int) -> None:
    write(_volume(seed=1), tmp_path / "out", unwatched)
    before = _files(tmp_path)

    def watch(progress: Progress) -> None:
        if progress.step == at:
            raise Cancelled

    with pytest.raises(Cancelled):
        write(_volume(seed=2), tmp_path / "out", watch)
    assert _files(tmp_path) == before


@pytest.mark.parametrize("write", WRITERS)
def test_an_older_result_is_replaced(tmp_path: Path, write: Writer) -> None:
    write(_volume(seed=1), tmp_path / "out", unwatched)
    before = _files(tmp_path)
    write(_volume(seed=2), tmp_path / "out", unwatched)
    after = _files(tmp_path)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_shorter_series_leaves_no_slice_of_the_longer_one(tmp_path: Path) -> None:
    long, short = _volume(), _volume()
    write_dicom(long, tmp_path / "series", unwatched)
    write_dicom(Volume(short.data[:2], short.voxel_mm, "ct", True), tmp_path / "series", unwatched)
    assert len(list((tmp_path / "series").iterdir())) == 2


def test_dicom_refuses_a_folder_with_other_things(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    write_dicom(_volume(), folder, unwatched)
    (folder / "slice_00099.dcm").write_bytes(b"not ours")
    before = _files(tmp_path)
    with pytest.raises(BadInput, match=r"holds 1 things .* slice_00099\.dcm") as caught:
        write_dicom(_volume(), folder, unwatched)
    assert "empty folder" in caught.value.hint
    assert _files(tmp_path) == before


def test_dicom_fills_an_empty_folder_and_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert len(write_dicom(_volume(), tmp_path / "empty", unwatched)) == SHAPE[0]
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file; a folder is to be written"):
        write_dicom(_volume(), tmp_path / "file", unwatched)


@pytest.mark.parametrize("write", [write_tiff, write_hdf5])
def test_a_folder_is_not_overwritten_by_a_file(tmp_path: Path, write: Writer) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="is a folder; a file is to be written"):
        write(_volume(), tmp_path / "out", unwatched)


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_folder_is_named(tmp_path: Path, write: Writer) -> None:
    with pytest.raises(BadInput, match=r"nowhere: there is no such folder"):
        write(_volume(), tmp_path / "nowhere" / "out", unwatched)


@pytest.mark.parametrize("write", WRITERS)
def test_an_empty_volume_is_refused(tmp_path: Path, write: Writer) -> None:
    with pytest.raises(BadInput, match=r"shape \(0, 4, 4\)"):
        write(Volume(np.zeros((0, 4, 4), np.float32), (1, 1, 1), "ct", False), tmp_path / "out", unwatched)


@pytest.mark.parametrize("write", WRITERS)
def test_a_result_that_reads_back_differently_is_not_kept(tmp_path: Path, write: Writer) -> None:
    write(_volume(seed=1), tmp_path / "out", unwatched)
    before = _files(tmp_path)
    volume = _volume(seed=2)

    def watch(progress: Progress) -> None:
        if progress.step == SHAPE[0]:  # all is written, nothing compared yet
            volume.data[2, 5, 5] += 1.0

    with pytest.raises(BadInput, match="reads back differently"):
        write(volume, tmp_path / "out", watch)
    assert _files(tmp_path) == before


_LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
from equipoise_engine.errors import BadInput
from equipoise_engine.formats.results.{module} import {name}
from equipoise_engine.progress import unwatched
from equipoise_engine.volume import Volume
data = np.random.default_rng(0).normal(size=(3, 200, 200)).astype(np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    {name}(Volume(data, (1, 1, 1), "mri", True), Path(sys.argv[1]), unwatched)
except BadInput as error:
    sys.stderr.write(error.message)
    sys.exit(2)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
@pytest.mark.parametrize(
    ("module", "name"), [("tiff", "write_tiff"), ("dicom", "write_dicom"), ("nexus", "write_hdf5")]
)
def test_a_file_size_limit_is_one_message(tmp_path: Path, module: str, name: str) -> None:
    out = tmp_path / "out"
    if module != "dicom":
        out.write_bytes(b"the old result")
    before = _files(tmp_path)
    code = _LIMITED.format(module=module, name=name)
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "does not take a file of about" in done.stderr
    assert "Traceback" not in done.stderr
    assert _files(tmp_path) == before


@pytest.fixture
def small_drive(tmp_path: Path) -> Iterator[Path]:
    """A drive of 4 MB, where this user may mount one."""
    drive = tmp_path / "drive"
    drive.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(drive)], capture_output=True)
    if not made or made.returncode:
        pytest.skip("this user may not mount a small drive")
    yield drive
    subprocess.run(["umount", "-l", str(drive)], check=True)


@pytest.mark.parametrize("write", WRITERS)
def test_a_drive_without_room_is_named_before_anything_is_written(small_drive: Path, write: Writer) -> None:
    large = Volume(np.ones((20, 300, 300), np.float32), (1, 1, 1), "ct", True)
    with pytest.raises(BadInput, match=r"the result needs \d+ bytes; \d+ bytes are free"):
        write(large, small_drive / "out", unwatched)
    assert not list(small_drive.iterdir())


@pytest.mark.parametrize("write", WRITERS)
def test_a_drive_that_fills_up_meanwhile_keeps_the_old_result(small_drive: Path, write: Writer) -> None:
    write(_volume(), small_drive / "out", unwatched)
    before = _files(small_drive)
    noise = np.random.default_rng(0).normal(size=(6, 200, 200)).astype(np.float32)

    def watch(progress: Progress) -> None:
        if progress.step == 1:
            with (small_drive / "filler").open("wb", buffering=0) as filler:
                while True:
                    try:
                        filler.write(b"x" * 4096)
                    except OSError:
                        break

    with pytest.raises(BadInput, match="drive is full"):
        write(Volume(noise, (1, 1, 1), "ct", True), small_drive / "out", watch)
    (small_drive / "filler").unlink()
    assert _files(small_drive) == before


@pytest.mark.parametrize("write", WRITERS)
def test_a_read_only_drive_is_one_message(small_drive: Path, write: Writer) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_drive)], check=True)
    with pytest.raises(BadInput, match="read-only"):
        write(_volume(), small_drive / "out", unwatched)
