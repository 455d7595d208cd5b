"""Roles, extent and geometry of a scan, in values and in words."""

from __future__ import annotations

import msgspec
import pytest

from equipoise.extent import first_slices, last_of, selected_shape, shape_text, span_of, span_size, unselected
from equipoise.geometry import (
    angles_text,
    beam_of,
    beam_text,
    centre_was_found,
    usual_range,
    with_value,
    without_found_centre,
)
from equipoise.roles import fitting, kind_of, role_rows, with_role
from equipoise_engine.protocol import MatchFact, Needed, ScanFacts
from equipoise_engine.recipe import AngleRange, Beam, Known, Recipe, Role, Selection, Source, Span

SOURCES = (
    Source(name="/data", shape=(181, 8, 64), kind="uint16"),
    Source(name="/theta", shape=(181, 1), kind="float64"),
    Source(name="/comment", shape=(1,), kind="text"),
    Source(name="flats/*.tif", shape=(), kind=""),
)
FOUND = MatchFact(role="rotation centre", source="found in the projections", shape=(), reason="opposite views")
CT = ScanFacts(
    scan="ct",
    path="/data/tooth.h5",
    kind="ct",
    format="HDF5",
    state="counts",
    shape=(181, 8, 64),
    slices=8,
    geometry=(("beam", "parallel"), ("angles", "0.000 to 180.000 degrees")),
    matched=(MatchFact(role="projections", source="/data", shape=(181, 8, 64), reason="its name"), FOUND),
    warnings=(),
    methods=("fbp",),
    recipe=Recipe(known=Known(centre_px=31.25)),
    full_shape=(181, 8, 64),
    sources=SOURCES,
)
MRI = msgspec.structs.replace(
    CT,
    scan="mri",
    kind="mri",
    matched=(MatchFact(role="k-space", source="DATA", shape=(320, 256, 8), reason="complex"),),
    recipe=Recipe(),
    shape=(5, 8, 64, 48),
    full_shape=(5, 8, 64, 48),
)


def needed(*missing: str) -> Needed:
    return Needed(path="/data/odd.h5", recipe=Recipe(), missing=missing, sources=SOURCES, message="odd.h5: unclear")


def test_each_kind_of_scan_has_its_roles() -> None:
    rows = role_rows(CT, None, Known())
    assert [row.role for row in rows] == ["projections", "flats", "darks", "angles", "monitor"]
    assert (rows[0].found, rows[0].shape, rows[0].reason) == ("/data", (181, 8, 64), "its name")
    assert rows[1].found == ""
    rows = role_rows(MRI, None, Known())
    assert [row.role for row in rows] == ["kspace", "trajectory", "density", "noise", "interference"]
    assert rows[0].found == "DATA"


def test_the_kind_of_a_scan_that_cannot_be_opened_follows_from_what_it_lacks() -> None:
    assert kind_of(None, needed("projections")) == "ct"
    assert kind_of(None, needed("kspace")) == "mri"
    assert kind_of(None, needed("matrix")) == "mri"
    assert kind_of(MRI, None) == "mri"


def test_a_missing_role_is_needed_until_it_is_told() -> None:
    assert [row.role for row in role_rows(None, needed("projections", "angles"), Known()) if row.needed] == [
        "projections",
        "angles",
    ]
    known = with_role(Known(angles=AngleRange(start_deg=0, stop_deg=180)), "projections", "/data")
    assert [row.role for row in role_rows(None, needed("projections", "angles"), known) if row.needed] == []


def test_a_role_is_told_denied_and_left_to_the_reader() -> None:
    known = with_role(Known(), "flats", " /white#0:10 ")
    assert known.roles == (Role(role="flats", source="/white#0:10"),)
    known = with_role(known, "flats", "")
    assert known.roles == (Role(role="flats", source=""),)
    assert role_rows(CT, None, known)[1].told == ""
    assert with_role(known, "flats", None) == Known()


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("projections", ["/data", "flats/*.tif"]),
        ("angles", ["/theta", "flats/*.tif"]),
        ("noise", ["/data", "/theta", "flats/*.tif"]),
    ],
)
def test_only_sources_of_a_fitting_shape_are_offered(role: str, names: list[str]) -> None:
    assert [source.name for source in fitting(role, SOURCES)] == names


def test_spans_keep_an_open_end() -> None:
    assert span_of(0, 180, 1, 181) == Span()
    assert span_of(10, 90, 2, 181) == Span(first=10, last=91, step=2)
    assert last_of(Span(), 181) == 180
    assert last_of(Span(first=10, last=91), 181) == 90
    assert span_size(Span(first=10, last=91, step=2), 181) == 41


def test_the_extent_of_a_selection_in_numbers_and_words() -> None:
    part = Selection(views=Span(step=2), columns=Span(first=10, last=42), bin=4)
    assert selected_shape("ct", (181, 8, 64), part) == (91, 2, 8)
    assert selected_shape("ct", (181, 2, 64), part) == (91, 2, 8)
    text = shape_text("ct", (181, 1, 64), Selection(columns=Span(last=32)))
    assert text == "181 views, 1 row, 32 of 64 columns: 50 % of the data"
    assert shape_text("ct", (181, 8, 64), Selection()) == "181 views, 8 rows, 64 columns: all of the data"
    part = Selection(rows=Span(first=2, last=4))
    assert selected_shape("mri", (5, 8, 64, 48), part) == (2, 8, 64, 48)
    assert shape_text("mri", (5, 8, 64, 48), part).startswith("2 of 5 slices, 8 coils")
    assert unselected(Recipe(selection=part)) == Recipe()


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        ("0.000 to 180.000 degrees", AngleRange(start_deg=0, stop_deg=180, inclusive=True)),
        ("0.000 to 179.006 degrees", AngleRange(start_deg=0, stop_deg=180)),
        ("-88.200 to 91.800 degrees", AngleRange(start_deg=-88.2, stop_deg=91.8, inclusive=True)),
        ("10.000 to 40.000 degrees", AngleRange(start_deg=10, stop_deg=40, inclusive=True)),
        ("", AngleRange(start_deg=0, stop_deg=180)),
    ],
)
def test_evenly_spaced_angles_begin_with_those_of_the_scan(angles: str, expected: AngleRange) -> None:
    assert usual_range(msgspec.structs.replace(CT, geometry=(("angles", angles),))) == expected


def test_angles_of_some_views_say_nothing_of_all() -> None:
    part = msgspec.structs.replace(
        CT, geometry=(("angles", "0 to 45 degrees"),), recipe=Recipe(selection=Selection(views=Span(last=45)))
    )
    assert usual_range(part) == AngleRange(start_deg=0, stop_deg=180)


def test_what_angles_and_beams_mean_is_said() -> None:
    assert (
        angles_text(AngleRange(start_deg=0, stop_deg=180, inclusive=True), 181)
        == "181 views, 1° apart, the last at 180°"
    )
    assert angles_text(AngleRange(start_deg=0, stop_deg=360), 360).endswith("the last at 359°")
    beam = Beam(source_axis_mm=410.66, source_detector_mm=553.74, pixel_mm=0.2)
    assert beam_text(beam, 560) == "magnification 1.348, voxel 0.1483 mm, fan 11.5°"
    assert "before the axis" in beam_text(Beam(source_axis_mm=500, source_detector_mm=400, pixel_mm=0.2), 0)
    told = "fan, flat detector; source to axis 410.66 mm, to detector 553.74 mm, element 0.2 mm"
    fan = msgspec.structs.replace(CT, geometry=(("beam", told),))
    assert beam_of(fan) == beam
    # the scan has elements that were put together, the file has not
    binned = msgspec.structs.replace(fan, recipe=Recipe(selection=Selection(bin=2)))
    assert beam_of(binned).pixel_mm == 0.1


def test_a_centre_that_was_found_is_found_again_where_it_may_move() -> None:
    known = CT.recipe.known
    assert centre_was_found(CT, known)
    assert with_value(CT, known, "angles", AngleRange(start_deg=0, stop_deg=360)).centre_px is None
    assert with_value(CT, known, "clockwise", True).centre_px == 31.25
    assert with_value(CT, Known(centre_px=30.0), "state", "counts").centre_px == 30.0
    given = MatchFact(role="rotation centre", source="given by the user", shape=(), reason="column 31.25")
    assert with_value(msgspec.structs.replace(CT, matched=(given,)), known, "state", "counts").centre_px == 31.25
    assert without_found_centre(CT, CT.recipe) == Recipe()
    assert without_found_centre(CT, Recipe(known=Known(centre_px=30.0))).known.centre_px == 30.0


def test_of_a_large_scan_only_the_middle_is_reconstructed_at_once() -> None:
    assert first_slices(CT) is None
    assert first_slices(MRI) is None
    large = msgspec.structs.replace(CT, shape=(1800, 2048, 2048), slices=2048)
    assert first_slices(large) == (1023, 1024)
    wide = msgspec.structs.replace(CT, shape=(181, 2000, 640), slices=2000)
    found = first_slices(wide)
    assert found is not None
    first, last = found
    assert 50 < last - first < 400
    assert abs((first + last) / 2 - 1000) <= 1
    assert first_slices(msgspec.structs.replace(large, methods=("fdk",))) is None
