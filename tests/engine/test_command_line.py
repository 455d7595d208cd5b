"""The command line as people and scripts call it: a process, its exit status, stdout and stderr."""

from __future__ import annotations

import faulthandler
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
import tifffile
import torch
from safetensors.numpy import load_file

from equipoise_engine import __main__ as command_line
from equipoise_engine import __version__
from equipoise_engine.cone import ConeBeamPhysics
from equipoise_engine.geometry import ConeBeam
from equipoise_resources import sample_path, weights_path


@pytest.fixture(autouse=True)
def _no_fault_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pytest's own fault handler in place, which needs a stderr with a descriptor."""
    monkeypatch.setattr(faulthandler, "enable", lambda: None)


CT, MRI = str(sample_path("ct")), str(sample_path("mri"))


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The one JSON object on stdout, which must be all there is."""
        assert self.status == 0, self.err
        assert self.out.count("\n") == 1
        found = json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert isinstance(found, dict)
        return found


def call(*arguments: object) -> Ended:
    argv = [sys.executable, "-m", "equipoise_engine", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def called_here(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """The same main function in this process: for the many wrong inputs, each of which ends before any work."""
    capsys.readouterr()
    try:
        status = command_line.main([str(argument) for argument in arguments])
    except SystemExit as end:  # how argparse ends
        status = int(str(end.code))
    captured = capsys.readouterr()
    return Ended(status, captured.out, captured.err)


# --- info ------------------------------------------------------------------------------------------


def test_info_says_what_a_scan_is() -> None:
    ct = call("info", CT, "--json").answer
    fields = {"kind", "format", "shape", "state", "geometry", "matched", "warnings"}
    assert set(ct) == fields | {"guessed", "sources", "steps", "recipe", "memory"}
    assert ct["steps"] == ["flat-field", "dead-pixels", "log"]
    assert ct["guessed"] == []
    assert "free" in ct["memory"]
    assert (ct["kind"], ct["format"], ct["state"]) == ("ct", "NXtomo", "counts")
    assert ct["shape"] == [120, 8, 176]
    assert ct["geometry"]["pixel size"] == "0.05 mm"
    assert ct["geometry"]["views"] == "120"
    assert ct["warnings"] == []
    roles = {match["role"]: match for match in ct["matched"]}
    assert {"projections", "angles", "flats", "darks", "rotation centre"} <= set(roles)
    assert roles["angles"]["source"] == "/entry/data/rotation_angle"
    assert roles["angles"]["reason"]
    centre = float(ct["geometry"]["rotation centre"].split()[-1])
    assert centre == pytest.approx(83.3, abs=0.1)


def test_info_of_mri_with_and_without_json(capsys: pytest.CaptureFixture[str]) -> None:
    mri = called_here(capsys, "info", MRI, "--json").answer
    assert (mri["kind"], mri["state"], mri["shape"]) == ("mri", "k-space", [2, 4, 160, 160])
    assert "220 x 220 mm" in mri["geometry"]["field of view"]
    told = called_here(capsys, "info", MRI)
    assert told.status == 0
    assert told.err == ""
    assert "kind: mri\n" in told.out
    assert "  matrix: 160 x 160 (ky, kx)\n" in told.out
    given = called_here(capsys, "info", CT, "--centre", 80, "--json").answer
    assert given["geometry"]["rotation centre"] == "column 80.00"
    version = called_here(capsys, "--version")
    assert (version.status, version.out) == (0, f"equipoise-engine {__version__}\n")


# --- reconstruct -----------------------------------------------------------------------------------

FIELDS = {"method", "outcome", "iterations", "data_residuals", "fixed_point_residuals", "seconds", "files"}


def test_an_iterative_method_gives_its_residuals_and_a_calibrated_tiff(tmp_path: Path) -> None:
    out = tmp_path / "c.tif"
    done = call("reconstruct", CT, "--method", "cgls", "--iterations", 4, "--slices", "3:5", "--out", out, "--json")
    told = done.answer
    assert set(told) == FIELDS
    assert (told["method"], told["outcome"], told["iterations"]) == ("cgls", "max_steps", 4)
    assert len(told["data_residuals"]) == len(told["fixed_point_residuals"]) == 4
    assert told["data_residuals"] == sorted(told["data_residuals"], reverse=True)
    assert all(0 < residual < 1 for residual in told["data_residuals"])
    assert told["seconds"] > 0
    assert told["files"] == [str(out)]
    with tifffile.TiffFile(out) as file:
        assert file.asarray().shape == (2, 176, 176)
        assert file.imagej_metadata is not None
        assert file.imagej_metadata["spacing"] == pytest.approx(0.05)
        made = json.loads(file.imagej_metadata["Info"])
    assert made["first_slice"] == 3
    assert made["provenance"]["settings"]["slices"] == [3, 5]
    assert len(made["provenance"]["scan sha256"]) == 64


def test_formats_by_name_and_by_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fbp(*arguments: object) -> dict[str, Any]:
        ended = called_here(capsys, "reconstruct", CT, "--method", "fbp", "--json", *arguments)
        assert ended.err == ""
        return ended.answer

    told = fbp("--slices", "0:2", "--out", tmp_path / "series")
    assert (told["outcome"], told["iterations"], told["fixed_point_residuals"]) == ("direct", 1, [])
    assert len(told["data_residuals"]) == 1
    assert len(told["files"]) == 2
    assert pydicom.dcmread(told["files"][0]).Rows == 176
    assert all(pydicom.dcmread(file).SOPClassUID.name == "CT Image Storage" for file in told["files"])
    forced = fbp("--slices", "0:1", "--format", "dicom", "--out", tmp_path / "named.folder")
    assert pydicom.dcmread(forced["files"][0]).Modality == "CT"
    odd = fbp("--slices", "0:1", "--format", "tiff", "--out", tmp_path / "odd.name", "--window", "hann")
    whole = tifffile.imread(odd["files"][0])
    assert whole.shape == (176, 176)
    hdf5 = fbp("--slices", "0:1", "--out", tmp_path / "v.h5")
    with h5py.File(hdf5["files"][0]) as file:
        assert "entry" in file
    # fewer views are really fewer: the image is another one, with streaks
    sparse = fbp("--slices", "0:1", "--views-every", 8, "--out", tmp_path / "sparse.tif")
    other = tifffile.imread(sparse["files"][0])
    assert sparse["data_residuals"] != told["data_residuals"]
    outside = (slice(0, 20), slice(0, 20))
    assert np.std(other[outside]) > 2 * np.std(whole[outside])


def test_mri_from_fewer_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {}
    for acceleration in (1, 4):
        for method in ("zerofilled", "sense"):
            out = tmp_path / f"{method}{acceleration}.tif"
            arguments = ("--accelerate", acceleration, "--iterations", 8, "--slices", "0:1", "--out", out, "--json")
            told = called_here(capsys, "reconstruct", MRI, "--method", method, *arguments).answer
            assert set(told) == FIELDS
            assert len(told["data_residuals"]) == (1 if method == "zerofilled" else told["iterations"])
            images[method, acceleration] = tifffile.imread(out)
    whole = images["zerofilled", 1] / images["zerofilled", 1].max()
    folded = images["zerofilled", 4] / images["zerofilled", 4].max()
    assert np.linalg.norm(folded - whole) > 0.05 * np.linalg.norm(whole)
    sense = {r: images["sense", r] / images["sense", r].max() for r in (1, 4)}
    # the coils make up for part of what was left out
    assert np.linalg.norm(sense[4] - sense[1]) < np.linalg.norm(folded - whole)


def test_a_model_made_by_pretrain_reconstructs(tmp_path: Path) -> None:
    config, model, out = tmp_path / "tiny.json", tmp_path / "tiny.safetensors", tmp_path / "m.tif"
    config.write_text(json.dumps({"side": 32, "denoise_steps": 2, "denoise_batch": 1, "equivariant_steps": 1}))
    made = call("pretrain", "mri", "--out", model, "--config", config, "--json").answer
    assert (made["steps"], made["file"]) == (1, str(model))
    arguments = ("--slices", "0:1", "--iterations", 3, "--accelerate", 2, "--out", out)
    told = call("reconstruct", MRI, "--method", "deq", "--model", model, *arguments)
    assert told.status == 0, told.err
    assert "method: deq\n" in told.out
    assert "fixed_point_residuals: " in told.out
    assert "slices 1 of 1" in told.err
    assert tifffile.imread(out).shape == (160, 160)


def test_numbers_that_json_has_no_word_for_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"a": [1.0, math.inf, math.nan], "b": {"c": -math.inf}, "d": "nan", "e": 3}
    command_line._report(result, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": [1.0, None, None], "b": {"c": None}, "d": "nan", "e": 3}


# --- finetune --------------------------------------------------------------------------------------


@pytest.mark.long
def test_training_in_two_parts_is_bit_for_bit_the_training_at_once(tmp_path: Path) -> None:
    settings = ("--batch", 1, "--views-every", 8, "--seed", 5, "--learning-rate", 1e-3, "--json")

    def tune(name: str, *arguments: object) -> dict[str, Any]:
        told = call("finetune", CT, "--out", tmp_path / name, *arguments).answer
        assert set(told) == {"steps", "losses", "seconds", "file"}
        assert told["file"] == str(tmp_path / name)
        return told

    whole = tune("whole.safetensors", "--steps", 2, *settings)
    half = tune("half.safetensors", "--steps", 1, *settings)
    # the settings are those of the checkpoint; another seed or rate would be another training
    rest = tune("rest.safetensors", "--steps", 2, "--resume", tmp_path / "half.safetensors", "--json")
    assert (whole["steps"], half["steps"], rest["steps"]) == (2, 1, 2)
    assert len(whole["losses"]) == 2
    assert half["losses"] == whole["losses"][:1]
    assert rest["losses"] == whole["losses"]
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "rest"))
    assert set(one) == set(other)
    assert any(name.startswith("optimiser/") for name in one)
    for name, tensor in one.items():
        assert tensor.tobytes() == other[name].tobytes(), name
    shipped = load_file(weights_path("ct"))
    assert any(tensor.tobytes() != one[name].tobytes() for name, tensor in shipped.items() if name in one)


# --- wrong input -----------------------------------------------------------------------------------


def one_line(ended: Ended, *words: str) -> None:
    """Check that wrong input ends with status 2, nothing on stdout and one line on stderr that holds the words."""
    assert ended.status == 2, ended
    assert ended.out == ""
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1, ended.err
    for word in words:
        assert word in ended.err


def test_wrong_input_is_one_line_and_status_2_in_a_real_process(tmp_path: Path) -> None:
    one_line(call("info", tmp_path / "none.h5", "--json"), "none.h5")
    one_line(call("reconstruct", CT, "--method", "sense", "--out", tmp_path / "o.tif"), "sense", "fbp")
    one_line(call("reconstruct", CT, "--method", "magic", "--out", tmp_path / "o.tif"), "magic", "fbp")
    assert list(tmp_path.iterdir()) == []


def test_each_wrong_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, cut, image = tmp_path / "scan.txt", tmp_path / "cut.nxs", tmp_path / "image.h5"
    text.write_text("no scan")
    cut.write_bytes(Path(CT).read_bytes()[:5000])
    with h5py.File(image, "w") as file:
        file["picture"] = np.zeros((4, 4))
    weights = tmp_path / "bad.safetensors"
    weights.write_bytes(b"not weights")
    out = tmp_path / "out.tif"
    tuned = tmp_path / "out.safetensors"

    def fbp(*arguments: object) -> Ended:
        return called_here(capsys, "reconstruct", CT, "--method", "fbp", "--out", out, *arguments)

    def deq(*arguments: object) -> Ended:
        return called_here(capsys, "reconstruct", CT, "--method", "deq", "--out", out, *arguments)

    def tune(*arguments: object) -> Ended:
        return called_here(capsys, "finetune", CT, "--out", tuned, *arguments)

    for path in (text, cut, image):
        one_line(called_here(capsys, "info", path), path.name)
    one_line(called_here(capsys, "info", tmp_path), tmp_path.name)
    for slices, words in (("0:9", "0:8"), ("5:5", "0:8"), ("3", "A:B"), ("a:b", "A:B"), ("-1:2", "--slices")):
        one_line(fbp("--slices", slices), words)
    for every in (0, -1, 61):
        one_line(fbp("--views-every", every), "1 to 60")
    one_line(fbp("--views-every", "two"), "--views-every")
    one_line(fbp("--accelerate", 2), "phase-encoding")
    one_line(fbp("--window", "boxcar"), "boxcar", "ram-lak")
    one_line(fbp("--centre", 500), "500")
    one_line(fbp("--tolerance", "nan"), "tolerance")
    one_line(fbp("--iterations", -3), "iterations")
    one_line(fbp("--no-such-option"), "--no-such-option")
    one_line(fbp("--format", "png"), "png")
    mri = ("reconstruct", MRI, "--method", "zerofilled", "--out", out)
    one_line(called_here(capsys, *mri, "--views-every", 2), "views")
    one_line(called_here(capsys, *mri, "--accelerate", 0), "acceleration")
    one_line(called_here(capsys, *mri, "--accelerate", 81), "1 to 80")
    (tmp_path / "folder.tif").mkdir()
    for target in ("o.xyz", "none/o.tif", "folder.tif"):
        ended = called_here(capsys, "reconstruct", CT, "--method", "fbp", "--out", tmp_path / target)
        one_line(ended, target.split("/")[0])
    one_line(called_here(capsys, "reconstruct", CT, "--method", "fbp", "--format", "dicom", "--out", text), "scan.txt")
    one_line(deq("--model", weights), "bad.safetensors")
    one_line(deq("--model", tmp_path / "no.safetensors"), "no.safetensors")
    one_line(tune(), "--steps or --minutes")
    one_line(tune("--steps", 1, "--resume", weights_path("ct")), "ct.safetensors")
    one_line(tune("--steps", 1, "--start", weights), "bad.safetensors")
    one_line(tune("--steps", 1, "--batch", 0), "batch 0")
    one_line(called_here(capsys, "finetune", CT, MRI, "--steps", 1, "--out", tuned), "CT and MRI")
    one_line(called_here(capsys, "finetune", CT, "--steps", 1, "--out", tmp_path), "cannot be written")
    one_line(
        called_here(capsys, "finetune", CT, "--steps", 1, "--out", tmp_path / "n" / "o.safetensors"), "does not exist"
    )
    bad = tmp_path / "bad.json"
    for content, words in (("{", "not a readable JSON file"), ('{"side": "large"}', "side"), ("[1]", "bad.json")):
        bad.write_text(content)
        one_line(called_here(capsys, "pretrain", "ct", "--out", tuned, "--config", bad), words)
    one_line(called_here(capsys), "COMMAND")
    one_line(called_here(capsys, "develop"), "develop")
    assert not out.exists()
    assert not tuned.exists()


def test_an_error_inside_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*arguments: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(command_line, "open_scan", breaks)
    ended = called_here(capsys, "info", CT)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == "error: an error inside the program: ZeroDivisionError: division by zero\n"


# --- what files do not say, and the benchmark -------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--beam", "100:90:0.1"), "axis at 100 mm does not lie between"),
        (("--beam", "100:200"), "AXIS:DETECTOR:ELEMENT"),
        (("--beam", "100:200:x"), "'x' is not a number"),
        (("--beam", "100:200:1e9"), "would span a fan of 180 degrees"),
        (("--angles", "0"), "START:STOP"),
        (("--angles=0:1e9",), "known.angles.stop_deg: expected float <= 36000"),
        (("--matrix", "64x64"), "the size of its images follows from its samples"),
        (("--matrix", "4x4"), "known.matrix[0]: expected int >= 16"),
        (("--rows", "5"), "A:B"),
        (("--rows", "0:900"), "900"),
        (("--bin", "0"), "selection.bin: expected int >= 1"),
        (("--step", "blur"), "there is no step 'blur'"),
        (("--step", "rings:size=1"), "size: expected int >= 3"),
        (("--step", "rings:colour=red"), "unknown field colour"),
        (("--step", "compress"), "compress"),
        (("--role", "flats"), "ROLE=SOURCE"),
        (("--recipe", "nowhere.json"), "nowhere.json"),
    ],
)
def test_what_a_file_cannot_be_told_is_refused(
    option: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one_line(called_here(capsys, "info", CT, *option), said)


def test_a_file_of_projections_is_reconstructed_as_a_cone_beam(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    beam = ConeBeam(angles, 100.0, 150.0, 1.5, 1.5, 5.5, 11.5)
    physics = ConeBeamPhysics(beam, (12, 24))
    volume = torch.zeros((1, *physics.domain))
    volume[:, 3:9, 6:15, 9:18] = 0.02
    path = tmp_path / "cone.h5"
    with h5py.File(path, "w") as file:
        file["implements"] = "exchange"
        file["exchange/data"] = 20000 * np.exp(-physics(volume)[0].numpy())
        file["exchange/data_white"] = np.full((1, 12, 24), 20000, np.float32)
        file["exchange/data_dark"] = np.zeros((1, 12, 24), np.float32)
        file["exchange/theta"] = np.degrees(angles)
    options = ("--beam", "100:150:1.5", "--centre", 11.5)
    told = called_here(capsys, "info", path, *options, "--json").answer
    assert told["geometry"]["beam"].startswith("cone; source to axis 100 mm")
    for method in ("fdk", "sirt"):
        out = tmp_path / f"{method}.tif"
        assert called_here(capsys, "reconstruct", path, *options, "--method", method, "--out", out).status == 0
        image = tifffile.imread(out)
        assert image.shape == (12, 24, 24)
        assert image[5:7, 8:13, 11:16].mean() == pytest.approx(0.02, rel=0.1)
        assert abs(image[5:7, 18:21, 11:16].mean()) < 0.003


# --- recipes, the rotation centre, other formats ----------------------------------------------------


def test_a_recipe_does_the_same_as_the_values_it_was_saved_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    told = ("--rows", "2:4", "--views", "0::2", "--bin", 2, "--step", "rings:method=normalisation,size=9")
    told = (*told, "--step", "beam-hardening:coefficients=1+0.02", "--no-step", "dead-pixels")
    saved = called_here(capsys, "info", CT, *told, "--save-recipe", file, "--json").answer
    assert saved["steps"] == ["flat-field", "log", "beam-hardening", "rings"]
    assert saved["shape"] == [60, 1, 88]
    assert called_here(capsys, "info", CT, "--recipe", file, "--json").answer["recipe"] == saved["recipe"]
    images = []
    for name, options in (("one", told), ("two", ("--recipe", file))):
        out = tmp_path / f"{name}.tif"
        ended = called_here(capsys, "reconstruct", CT, *options, "--method", "fbp", "--out", out)
        assert ended.status == 0, ended.err
        images.append(tifffile.imread(out))
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)
    plain = tmp_path / "plain.tif"
    assert called_here(capsys, "reconstruct", CT, "--method", "fbp", "--out", plain).status == 0
    assert tifffile.imread(plain).shape == (8, 176, 176)
    file.write_text('{"selection": {"bin": 1000}}')
    one_line(called_here(capsys, "info", CT, "--recipe", file), "mine.json", "selection.bin: expected int <= 64")


def test_centre_says_what_each_method_finds(capsys: pytest.CaptureFixture[str]) -> None:
    found = called_here(capsys, "centre", CT, "--json").answer
    assert found["centre_px"] == pytest.approx(83.3, abs=0.2)
    assert found["confidence"] > 0.5
    methods = {one["method"] for one in found["estimates"]}
    assert {"opposite views", "double wedge", "sharpness"} <= methods
    assert all(len(one["positions_px"]) == len(one["metric"]) for one in found["estimates"])
    # counted in columns of the file, whatever part of it is taken
    part = called_here(capsys, "centre", CT, "--columns", "10:170", "--bin", 2, "--between", "70:100", "--json").answer
    assert part["centre_px"] == pytest.approx(83.3, abs=0.5)
    one_line(called_here(capsys, "centre", CT, "--between", "0:9999"), "9999")
    one_line(called_here(capsys, "centre", MRI), "no rotation axis")


@pytest.mark.parametrize(
    ("kind", "name", "form"), [(CT, "o.nxs", "nxtomo"), (CT, "o.h5", "dataexchange"), (MRI, "o.h5", "ismrmrd")]
)
def test_convert_writes_what_reads_back_equal(
    kind: Path, name: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    done = called_here(capsys, "convert", kind, out, "--json").answer
    assert done["format"] == form
    first = called_here(capsys, "info", kind, "--json").answer
    second = called_here(capsys, "info", out, "--json").answer
    for field in ("kind", "shape", "state", "steps"):
        assert second[field] == first[field]
    if form != "ismrmrd":
        assert second["recipe"]["known"]["centre_px"] == pytest.approx(first["recipe"]["known"]["centre_px"], abs=1e-3)


def test_convert_refuses_what_has_no_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(called_here(capsys, "convert", CT, tmp_path / "o.xyz"), "o.xyz", "--format")
    one_line(called_here(capsys, "convert", CT, tmp_path / "o.h5", "--format", "ismrmrd"), "no format for CT")
    one_line(called_here(capsys, "convert", CT, tmp_path / "none" / "o.h5"), "no such folder")
    assert list(tmp_path.iterdir()) == []


def test_bench_gives_its_rows_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    told = called_here(
        capsys, "bench", "operators", "--sizes", "24/8", "--batches", "1", "--repeats", 1, "--json"
    ).answer
    names = {"operator", "implementation", "size", "views", "batch", "device"}
    names |= {"forward_ms", "adjoint_ms", "adjoint_error", "bound_ms"}
    assert all(set(row) == names for row in told["rows"])
    assert {row["size"] for row in told["rows"]} == {24}
