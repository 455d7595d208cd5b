"""Recipes in files: what is written is read again, and what is wrong is told in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from equipoise.recipe_file import MAX_BYTES, RecipeFileError, load_recipe, save_recipe
from equipoise_engine.recipe import (
    AngleRange,
    FlatField,
    Known,
    NegativeLog,
    Recipe,
    Role,
    Selection,
    Span,
)

WHOLE = Recipe(
    known=Known(roles=(Role(role="flats", source="/a/b#0:3"),), angles=AngleRange(start_deg=0, stop_deg=180)),
    selection=Selection(rows=Span(first=3, last=9), bin=2),
    steps=(FlatField(average="median"), NegativeLog(floor=0.125)),
)


@pytest.mark.parametrize("recipe", [WHOLE, Recipe(), Recipe(steps=())])
def test_a_recipe_comes_back_as_it_was(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "r.json"
    save_recipe(path, recipe)
    assert load_recipe(path) == recipe
    assert json.loads(path.read_text())["version"] == 1
    assert os.listdir(tmp_path) == ["r.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"steps": [{"step": "flat-field"}, {"step": "zingers", "threshold": 0}]}',
            "step 2, threshold must be more than",
        ),
        ('{"steps": [{"step": "zingers", "size": 99}]}', "step 1, size must be at most 31"),
        ('{"steps": [{"step": "polish"}]}', "step 1, step cannot be 'polish'"),
        ('{"steps": [{"step": "log", "depth": 1}]}', "steps 1 has no value called depth"),
        ('{"steps": [{"step": "beam-hardening", "coefficients": []}]}', "coefficients must be at least 1"),
        ('{"known": {"pixel_mm": "wide"}}', "known.pixel_mm must be a number or nothing, not text"),
        ('{"known": {"roles": [{"role": "flats"}]}}', "known.roles 1 lacks the value source"),
        ('{"selection": {"bin": 65}}', "selection.bin must be at most 64"),
        ('{"version": 7}', "version cannot be 7"),
        ('{"colour": 7}', "it has no value called colour"),
        ("[]", "it must be a group of values in { }, not a list"),
        ('{"steps": ', "is no recipe: it is not JSON"),
        ("", "is no recipe: it is not JSON"),
        ("[" * 5000, "it must be a group of values"),
        ('{"a": ' * 5000, "no value called a"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(RecipeFileError) as raised:
        load_recipe(path)
    message = str(raised.value)
    assert words in message
    assert message.startswith("bad.json ")
    assert message.endswith(".")
    assert "`" not in message
    assert "$" not in message


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(RecipeFileError, match="larger than 1 MiB"):
        load_recipe(large)
    with pytest.raises(RecipeFileError, match="cannot be read"):
        load_recipe(tmp_path / "nothing.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\x89HDF\xff\xfe")
    with pytest.raises(RecipeFileError, match="not JSON"):
        load_recipe(binary)


def test_a_recipe_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeFileError, match="cannot be written"):
        save_recipe(tmp_path / "no folder" / "r.json", WHOLE)
    taken = tmp_path / "taken.json"
    taken.mkdir()
    with pytest.raises(RecipeFileError, match="cannot be written"):
        save_recipe(taken, WHOLE)
    assert os.listdir(tmp_path) == ["taken.json"]
