"""Recipes: what they are in a file, their limits, and where a step usually stands."""

from __future__ import annotations

import re
from typing import get_args

import msgspec
import pytest

from equipoise_engine.recipe import (
    CT_STEPS,
    MRI_STEPS,
    BeamHardening,
    CompressCoils,
    CtStep,
    DeadPixels,
    FlatField,
    Known,
    MriStep,
    NegativeLog,
    Recipe,
    Rings,
    Role,
    Selection,
    Span,
    Tilt,
    Zingers,
    name_of,
    reason,
    with_step,
)


def test_a_recipe_is_plain_json_without_what_is_usual() -> None:
    assert msgspec.json.encode(Recipe()) == b"{}"
    recipe = Recipe(
        known=Known(roles=(Role(role="flats", source="flats/*.tif"),), centre_px=296.5),
        selection=Selection(rows=Span(first=2, last=4), bin=2),
        steps=(FlatField(average="median"), NegativeLog(), BeamHardening(coefficients=(1.0, 0.05))),
    )
    text = msgspec.json.encode(recipe)
    assert b'{"step":"flat-field","average":"median"}' in text
    assert msgspec.json.decode(text, type=Recipe) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"selection": {"bin": 0}}', "selection.bin: expected int >= 1"),
        ('{"steps": [{"step": "zingers", "size": 2}]}', r"steps\[0\].size: expected int >= 3"),
        ('{"steps": [{"step": "blur"}]}', "steps.*blur"),
        ('{"steps": [{"step": "rings", "colour": 1}]}', "unknown field colour"),
        ('{"known": {"layout": "films"}}', "known.layout: invalid enum value 'films'"),
        ('{"version": 2}', "version"),
        ("[1]", "expected object, got array"),
        ("{", "truncated"),
    ],
)
def test_what_is_no_recipe_is_said_with_its_field(text: str, said: str) -> None:
    with pytest.raises(msgspec.MsgspecError) as caught:
        msgspec.json.decode(text, type=Recipe)
    assert re.search(said, reason(caught.value)), reason(caught.value)


def test_every_step_has_a_place_and_a_name() -> None:
    assert set(CT_STEPS) == set(get_args(CtStep))
    assert set(MRI_STEPS) == set(get_args(MriStep))
    names = [name_of(kind) for kind in CT_STEPS + MRI_STEPS]
    assert len(set(names)) == len(names)
    for kind in CT_STEPS + MRI_STEPS:
        assert msgspec.convert({"step": name_of(kind)}, kind) == kind()
        # the window makes its forms of these
        for field in msgspec.structs.fields(kind):
            told = [part for part in getattr(field.type, "__metadata__", ()) if isinstance(part, msgspec.Meta)]
            assert [bool(meta.title and meta.description) for meta in told[:1]] == [True], (kind, field.name)


def test_a_step_takes_the_place_of_its_kind_or_its_usual_one() -> None:
    steps = (FlatField(), NegativeLog())
    assert with_step(steps, DeadPixels()) == (FlatField(), DeadPixels(), NegativeLog())
    assert with_step(steps, Rings(size=9)) == (*steps, Rings(size=9))
    assert with_step((*steps, Rings()), Rings(size=9)) == (*steps, Rings(size=9))
    assert with_step((), CompressCoils()) == (CompressCoils(),)
    # an order that was chosen stays
    odd = (NegativeLog(), Tilt(), FlatField())
    assert with_step(odd, Zingers()) == (Zingers(), *odd)
