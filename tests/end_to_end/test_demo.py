"""The demonstration as a program of its own, with sample scans of fewer slices and columns than those that ship."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pydicom
import pytest
import tifffile

import equipoise_resources

SMALLER = {"CT_SLICES": 3, "CT_COLUMNS": 64, "CT_CENTRE_PX": 30.3, "MRI_SIZE": 80}
"""Constants of the script that makes the sample scans."""


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with all that ships with the program, its sample scans made smaller by the script that makes them."""
    folder = tmp_path_factory.mktemp("resources")
    package = folder / equipoise_resources.__name__
    shutil.copytree(Path(equipoise_resources.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    script = import_module("equipoise_resources.samples.make_samples")
    with pytest.MonkeyPatch.context() as constants:
        for name, value in SMALLER.items():
            constants.setattr(script, name, value)
        script.main(package / "samples")
    return folder


def demo(folder: Path, resources: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "equipoise", "--demo", str(folder)]
    # the engine that the program starts inherits this and finds the same resources
    places = os.pathsep.join(filter(None, (str(resources), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": places}
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)


def test_a_folder_that_cannot_be_made_is_told(resources: Path, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("no folder")
    done = demo(letter / "demo", resources, 60)
    assert done.returncode == 1
    assert str(letter / "demo") in done.stderr
    assert "Done" not in done.stdout


@pytest.mark.long
def test_trouble_on_the_way_ends_it_with_a_reason(resources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    # the adapted weights cannot take the place of a folder that holds something
    (folder / "ct-adapted.safetensors" / "in the way").mkdir(parents=True)
    done = demo(folder, resources, 200)
    assert done.returncode == 1
    assert "ct-adapted.safetensors" in done.stderr
    assert "The demonstration has failed" in done.stderr
    assert not (folder / "screenshot.png").exists()


def test_demo(resources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = demo(folder, resources, 280)
    assert done.returncode == 0, done.stderr
    assert tifffile.imread(folder / "ct-adapted.tif").shape == (3, 64, 64)
    assert tifffile.imread(folder / "mri-equilibrium.tif").shape == (2, 80, 80)
    assert pydicom.dcmread(folder / "ct-adapted-dicom" / "slice_00000.dcm").Modality == "CT"
    assert pydicom.dcmread(folder / "mri-equilibrium-dicom" / "slice_00001.dcm").Modality == "MR"
    assert (folder / "screenshot.png").stat().st_size > 50_000
    for name in ("ct-adapted.tif", "mri-equilibrium-dicom", "screenshot.png"):
        assert str(folder / name) in done.stdout
