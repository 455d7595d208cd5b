"""The steps for people: every step of the recipe has a name, fields with limits, and a line of words."""

from __future__ import annotations

import msgspec
import pytest

from equipoise.step_fields import STEP_NAMES, Field, fields_of, limits, parse_numbers, step_title, summary
from equipoise_engine.recipe import (
    CT_STEPS,
    MRI_STEPS,
    BeamHardening,
    FlatField,
    Prewhiten,
    Recipe,
    Rings,
    Step,
    Zingers,
    name_of,
)

ALL = CT_STEPS + MRI_STEPS


@pytest.mark.parametrize("kind", ALL, ids=name_of)
def test_every_step_can_be_named_shown_and_summed_up(kind: type[Step]) -> None:
    assert step_title(kind) == STEP_NAMES[name_of(kind)]
    assert (kind.__doc__ or "").strip().partition("\n")[0].endswith(".")
    fields = fields_of(kind)
    assert fields
    assert all(field.title and field.description for field in fields)
    words = summary(kind())
    assert "\n" not in words
    assert words.count(",") == len(fields) - 1


@pytest.mark.parametrize("kind", ALL, ids=name_of)
def test_the_limits_are_those_of_the_recipe(kind: type[Step]) -> None:
    """What the form lets through the engine lets through too, and just outside it refuses."""

    def accepted(field: Field, value: object) -> bool:
        plain = {"steps": [{"step": name_of(kind), field.name: value}]}
        try:
            msgspec.convert(plain, Recipe)
        except msgspec.ValidationError:
            return False
        return True

    for field in fields_of(kind):
        match field.kind:
            case "number" | "count":
                number = int if field.kind == "count" else float
                assert accepted(field, number(field.low))
                assert accepted(field, number(field.high))
                assert not accepted(field, number(field.low - 1))
                assert not accepted(field, number(field.high + 1)) or field.high >= 2**31 - 1
                assert limits(field)
            case "choice":
                assert all(accepted(field, value) for value in field.choices)
            case "switch":
                assert accepted(field, True)
            case "numbers":
                assert accepted(field, [1.0] * int(field.low))
                assert accepted(field, [1.0] * int(field.high))
                assert not accepted(field, [1.0] * (int(field.high) + 1))


def test_words_of_a_step() -> None:
    assert summary(FlatField(average="median", monitor=False)) == "average median, monitor off"
    assert summary(Rings(strength=2.5)).endswith("strength 2.5")
    assert summary(BeamHardening(coefficients=(1.0, 0.25))) == "coefficients 1 0.25"
    by_name = {field.name: field for field in fields_of(Prewhiten)}
    assert by_name["source"].choices == ("auto", "lines", "edge")
    assert [field.odd for field in fields_of(Zingers)] == [False, True]


def test_numbers_are_read_with_commas_or_blanks() -> None:
    (field,) = fields_of(BeamHardening)
    assert parse_numbers(" 1, 0.5 2e-3 ", field) == (1.0, 0.5, 0.002)
    for text, message in (("1, x", "'x' is not a number"), ("", "1 to 6 numbers, not 0"), ("inf", "not a finite")):
        with pytest.raises(ValueError, match=message):
            parse_numbers(text, field)
