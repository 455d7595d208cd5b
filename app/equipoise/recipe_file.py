"""Recipes in files: JSON that people can read, checked against the limits of every value."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

import msgspec

from equipoise_engine.recipe import Recipe

MAX_BYTES = 1 << 20

_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a group of values in { }",
    "null": "nothing",
}


class RecipeFileError(Exception):
    """A file holds no recipe, or cannot be read or written; the message is one sentence for people."""


def load_recipe(path: Path) -> Recipe:
    """Return the recipe in a file.

    Raises
    ------
    RecipeFileError
        The file cannot be read, is no JSON, or a value is unknown or outside its limits.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeFileError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    if len(text) > MAX_BYTES:
        raise RecipeFileError(f"{path.name} is no recipe: it is larger than {MAX_BYTES >> 20} MiB.")
    try:
        return msgspec.json.decode(text, type=Recipe)
    except msgspec.ValidationError as error:
        raise RecipeFileError(f"{path.name} is no recipe that can be used: {_sentence(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeFileError(f"{path.name} is no recipe: it is not JSON ({error}).") from error


def save_recipe(path: Path, recipe: Recipe) -> None:
    """Write a recipe as JSON, in one piece or not at all.

    Raises
    ------
    RecipeFileError
        The file cannot be written; an earlier one of that name is then as it was.
    """
    # what has its default is left out, but the version is what later programs look for first
    whole = {"version": recipe.version, **msgspec.to_builtins(recipe)}
    text = msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"
    written = ""
    try:
        handle, written = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, path)
    except OSError as error:
        if written:
            with contextlib.suppress(OSError):
                os.unlink(written)
        raise RecipeFileError(f"{path.name} cannot be written: {error.strerror or error}.") from error


def _sentence(error: str) -> str:
    """Return what msgspec says about a value as a sentence with its place and its limit."""
    what, _, where = error.partition(" - at `$")
    name = _place(where.rstrip("`"))
    if found := re.match(r"Object contains unknown field `(.*)`", what):
        return f"{name or 'it'} has no value called {found.group(1)}."
    if found := re.match(r"Object missing required field `(.*)`", what):
        return f"{name or 'it'} lacks the value {found.group(1)}."
    if found := re.match(r"Invalid (?:enum )?value (.*)", what):
        return f"{name or 'it'} cannot be {found.group(1)}."
    if found := re.match(r"Expected `(\w+)( \| null)?` (>=|<=|>|<) (\S+)$", what):
        words = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}[found.group(3)]
        return f"{name} must be {words} {found.group(4)}."
    if found := re.match(r"Expected `array` of (?:at (least|most) )?length (?:(>=|<=) )?(\S+)", what):
        words = (
            f"at {found.group(1)} "
            if found.group(1)
            else {">=": "at least ", "<=": "at most "}.get(found.group(2) or "", "")
        )
        return f"{name} must be {words}{found.group(3)} values long."
    if found := re.match(r"Expected `(.*?)`, got `(.*?)`", what):
        return f"{name or 'it'} must be {_kind(found.group(1))}, not {_kind(found.group(2))}."
    return f"{name + ': ' if name else ''}{what}."


def _kind(names: str) -> str:
    return " or ".join(_NAMES.get(name.strip(), name.strip()) for name in names.split("|"))


def _place(where: str) -> str:
    """Return the dotted name of a value; parts of a list are counted from 1."""
    counted = re.sub(r"\[(\d+)\]", lambda found: f" {int(found.group(1)) + 1}", where)
    return re.sub(r"^steps (\d+)\.", r"step \1, ", counted.replace("[...]", "").lstrip("."))
