"""The steps of a preparation for people: their names, and the fields and limits of their values. No Qt here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args, get_type_hints

from msgspec import inspect

from equipoise_engine.recipe import Step, name_of

DECIMALS = 9
"""After the point, of numbers that can be typed."""
_LARGEST_COUNT = 2_147_483_647

STEP_NAMES = {
    "flat-field": "Flat field",
    "dead-pixels": "Dead pixels",
    "zingers": "Zingers",
    "phase": "Phase retrieval",
    "tilt": "Tilt of the axis",
    "air": "Air normalisation",
    "log": "Negative logarithm",
    "beam-hardening": "Beam hardening",
    "rings": "Rings",
    "prewhiten": "Prewhitening",
    "interference": "Outside interference",
    "ghost": "EPI ghosts",
    "compress": "Coil compression",
}
"""Name for people of each step."""


def step_title(step: Step | type[Step]) -> str:
    """Return the name of a step for people."""
    name = name_of(step)
    return STEP_NAMES.get(name, name)


def titled(text: str) -> str:
    """Return a text of the engine in which steps stand by their names for people: 'log' is "Negative logarithm"."""
    for name, title in STEP_NAMES.items():
        text = text.replace(f"'{name}'", f"“{title}”").replace(f"({name})", f"({title})")
    return text


@dataclass(frozen=True)
class Field:
    """One value of a step.

    Parameters
    ----------
    name
        In the recipe.
    title
        For people.
    description
        What it means.
    kind
        "number", "count", "choice", "switch" or "numbers".
    low, high
        Limits of a number, or of how many numbers there are.
    choices
        Of a choice, in the order of the recipe.
    odd
        Whether a count must be odd.
    """

    name: str
    title: str
    description: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()
    odd: bool = False


def fields_of(kind: type[Step]) -> tuple[Field, ...]:
    """Return the values of a kind of step, in the order of the recipe."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    # the types as written: msgspec sorts the values of a choice
    written = get_type_hints(kind)
    return tuple(_field(field, tuple(str(v) for v in get_args(written[field.name]))) for field in info.fields)


def summary(step: Step) -> str:
    """Return the values of a step in one line, as "average mean, monitor on"."""
    parts = []
    for field in fields_of(type(step)):
        title = field.title if field.title[1:2].isupper() or not field.title.isascii() else field.title.lower()
        parts.append(f"{title} {_words(getattr(step, field.name))}")
    return ", ".join(parts)


def limits(field: Field) -> str:
    """Return the limits of a number in words, empty where there are none."""
    if field.kind not in ("number", "count"):
        return ""
    return f"{field.low:g} to {field.high:g}" + (", odd" if field.odd else "")


def parse_numbers(text: str, field: Field) -> tuple[float, ...]:
    """Return the numbers that are written with commas or blanks between them.

    Raises
    ------
    ValueError
        One is no number, or there are too few or too many; the message is for people.
    """
    words = text.replace(",", " ").split()
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            raise ValueError(f"{word!r} is not a number.") from None
        if not abs(numbers[-1]) < float("inf"):
            raise ValueError(f"{word!r} is not a finite number.")
    if not field.low <= len(numbers) <= field.high:
        raise ValueError(f"{field.title} takes {field.low:g} to {field.high:g} numbers, not {len(numbers)}.")
    return tuple(numbers)


def _field(field: inspect.Field, choices: tuple[str, ...]) -> Field:
    inner = field.type
    about: dict[str, object] = {}
    if isinstance(inner, inspect.Metadata):
        about, inner = inner.extra_json_schema or {}, inner.type
    title = str(about.get("title", field.name.replace("_", " ").capitalize()))
    description = str(about.get("description", ""))
    match inner:
        case inspect.BoolType():
            return Field(field.name, title, description, "switch")
        case inspect.LiteralType():
            return Field(field.name, title, description, "choice", choices=choices)
        case inspect.IntType():
            low, high = _span(inner)
            odd = "odd" in description.replace(".", " ").replace(";", " ").split()
            return Field(field.name, title, description, "count", max(low, 0), min(high, _LARGEST_COUNT), odd=odd)
        case inspect.FloatType():
            return Field(field.name, title, description, "number", *_span(inner))
        case inspect.VarTupleType(item_type=inspect.FloatType()):
            return Field(
                field.name, title, description, "numbers", float(inner.min_length or 0), float(inner.max_length or 64)
            )
        case _:
            raise TypeError(f"a form cannot show {field.name} of type {inner}")


def _span(kind: inspect.IntType | inspect.FloatType) -> tuple[float, float]:
    whole = isinstance(kind, inspect.IntType)
    smallest = 1 if whole else 10.0**-DECIMALS
    low = kind.ge if kind.ge is not None else -1e12 if kind.gt is None else kind.gt + smallest
    high = kind.le if kind.le is not None else 1e12 if kind.lt is None else kind.lt - smallest
    return float(low), float(high)


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return " ".join(_words(v) for v in value)
    return str(value)
