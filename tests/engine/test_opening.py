"""Opening by a recipe: what is settled on the way, and what is kept for another look."""

from __future__ import annotations

from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.opening import OpenScans, open_scan
from equipoise_engine.preprocess.attenuation import attenuation
from equipoise_engine.progress import unwatched
from equipoise_engine.recipe import (
    CompressCoils,
    FlatField,
    Known,
    NegativeLog,
    Prewhiten,
    Recipe,
    Rings,
    Selection,
    Span,
    name_of,
    with_step,
)
from equipoise_resources import sample_path


def opened(recipe: Recipe = Recipe(), kind: str = "ct") -> CtAcquisition:  # noqa: B008 - frozen
    scan = open_scan(sample_path(kind), recipe, unwatched)
    assert isinstance(scan, CtAcquisition)
    return scan


def test_an_open_scan_has_a_complete_recipe_that_opens_it_again_equally() -> None:
    scan = opened()
    assert scan.recipe.steps is not None
    assert {"flat-field", "log"} <= {name_of(step) for step in scan.recipe.steps}
    assert scan.recipe.known.centre_px == scan.geometry.centre_px
    again = opened(msgspec.json.decode(msgspec.json.encode(scan.recipe), type=Recipe))
    assert again.recipe == scan.recipe
    np.testing.assert_array_equal(attenuation(again, slice(0, 1)), attenuation(scan, slice(0, 1)))


def test_the_centre_follows_crop_and_bin() -> None:
    scan = opened()
    whole = scan.geometry.centre_px
    assert whole is not None
    columns = scan.shape[2]
    part = Selection(columns=Span(first=10, last=columns - 2), bin=2, views=Span(step=2))
    # told in columns of the file
    told = opened(Recipe(known=Known(centre_px=whole), selection=part))
    assert told.geometry.centre_px == pytest.approx((whole - 10 - 0.5) / 2)
    assert told.full_shape == scan.shape
    assert told.shape[0] == (scan.shape[0] + 1) // 2
    # found in the part, and kept in columns of the file
    found = opened(Recipe(selection=part))
    assert found.recipe.known.centre_px == pytest.approx(whole, abs=1.0)


def test_steps_can_be_told_beside_the_usual_ones() -> None:
    scan = open_scan(sample_path("ct"), Recipe(), unwatched, lambda usual: with_step(usual, Rings(size=9)))
    assert scan.recipe.steps is not None
    assert scan.recipe.steps[-1] == Rings(size=9)
    usual = opened().recipe.steps
    assert usual is not None
    assert scan.recipe.steps[:-1] == usual


def test_a_recipe_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(BadInput, match=r"step 1 \(log\) takes transmission"):
        opened(Recipe(steps=(NegativeLog(), FlatField())))
    with pytest.raises(BadInput, match="prewhiten"):
        opened(Recipe(steps=(Prewhiten(),)))
    with pytest.raises(BadInput, match="compress"):
        open_scan(sample_path("mri"), Recipe(steps=(CompressCoils(coils=1000),)), unwatched)


def test_mri_scans_are_cut_by_slices() -> None:
    whole = open_scan(sample_path("mri"), Recipe(), unwatched)
    assert isinstance(whole, MriAcquisition)
    with pytest.raises(BadInput, match="only slices can be selected"):
        open_scan(sample_path("mri"), Recipe(selection=Selection(columns=Span(first=3))), unwatched)
    last = whole.slices
    part = open_scan(sample_path("mri"), Recipe(selection=Selection(rows=Span(first=last - 1))), unwatched)
    assert part.slices == 1
    np.testing.assert_array_equal(part.kspace[0], whole.kspace[last - 1])


def test_what_was_looked_at_is_kept_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    path.write_bytes(sample_path("ct").read_bytes())
    scans = OpenScans()
    first = scans.scan(path, Recipe(), unwatched)
    assert scans.scan(path, Recipe(), unwatched) is first
    other = scans.scan(path, Recipe(known=Known(centre_px=33.0)), unwatched)
    assert isinstance(first, CtAcquisition)
    assert isinstance(other, CtAcquisition)
    # the file was not read again for another centre
    assert other.projections is first.projections
    assert other.geometry.centre_px == 33.0
    path.touch()
    assert scans.scan(path, Recipe(), unwatched) is not first


def test_a_scan_whose_axis_cannot_be_found_opens_about_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "few.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = np.random.default_rng(1).normal(1.0, 0.1, (4, 2, 31))
        file["exchange/theta"] = np.array([0.0, 10.0, 20.0, 30.0])
    scan = open_scan(path, Recipe(), unwatched)
    assert isinstance(scan, CtAcquisition)
    assert scan.geometry.centre_px == 15.0
    assert "centre_px" in scan.guessed
    assert any("the middle of the detector, column 15, was taken" in text for text in scan.warnings)
    assert "centre_px" not in open_scan(path, Recipe(known=Known(centre_px=14.0)), unwatched).guessed


@pytest.mark.parametrize("centre", [-1.0, 176.0, 1e9, float("nan")])
def test_an_axis_outside_the_detector_is_refused(centre: float) -> None:
    with pytest.raises(BadInput, match=r"lies outside the detector, whose columns count from 0 to 175"):
        opened(Recipe(known=Known(centre_px=centre)))


def test_what_had_to_be_made_up_is_said(tmp_path: Path) -> None:
    assert not any("made up" in text or "transmit" in text for text in opened().warnings)
    path = tmp_path / "scan.nxs"
    path.write_bytes(sample_path("ct").read_bytes())
    with h5py.File(path, "r+") as file:
        name = next(n for n in _names(file) if isinstance(file[n], h5py.Dataset) and file[n].ndim == 3)
        images, keys = file[name], next(np.asarray(file[n]) for n in _names(file) if n.endswith("image_key"))
        data = images[...]
        views = np.flatnonzero(keys == 0)
        data[views[[10, 50, 51]]] = data[keys == 2].mean(axis=0).astype(data.dtype)
        data[keys == 0, :, 100:103] = 500
        images[...] = data
    scan = open_scan(path, Recipe(), unwatched)
    assert "The beam was off in 3 of 120 views, which were made up from those before and after." in scan.warnings
    assert any("% of the detector elements in 5 detector rows" in text for text in scan.warnings)
    assert scan.recipe.known.centre_px == pytest.approx(opened().recipe.known.centre_px, abs=0.3)


def _names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names
