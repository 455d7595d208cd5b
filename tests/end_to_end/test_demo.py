"""The demonstration as a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
import tifffile


def demo(folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "equipoise", "--demo", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("no folder")
    done = demo(letter / "demo", 60)
    assert done.returncode == 1
    assert str(letter / "demo") in done.stderr
    assert "Done" not in done.stdout


def test_trouble_on_the_way_ends_it_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    # the adapted weights cannot take the place of a folder that holds something
    (folder / "ct-adapted.safetensors" / "in the way").mkdir(parents=True)
    done = demo(folder, 200)
    assert done.returncode == 1
    assert "ct-adapted.safetensors" in done.stderr
    assert "The demonstration has failed" in done.stderr
    assert not (folder / "screenshot.png").exists()


@pytest.mark.long
def test_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = demo(folder, 280)
    assert done.returncode == 0, done.stderr
    assert tifffile.imread(folder / "ct-adapted.tif").shape == (8, 176, 176)
    assert tifffile.imread(folder / "mri-equilibrium.tif").shape == (2, 160, 160)
    assert pydicom.dcmread(folder / "ct-adapted-dicom" / "slice_00000.dcm").Modality == "CT"
    assert pydicom.dcmread(folder / "mri-equilibrium-dicom" / "slice_00001.dcm").Modality == "MR"
    assert (folder / "screenshot.png").stat().st_size > 50_000
    for name in ("ct-adapted.tif", "mri-equilibrium-dicom", "screenshot.png"):
        assert str(folder / name) in done.stdout
