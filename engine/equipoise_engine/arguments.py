"""Recipes on the command line: a file of one, and single values that are told in its place."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import msgspec

from equipoise_engine.errors import BadInput
from equipoise_engine.formats.atomic import new_file
from equipoise_engine.recipe import (
    CT_STEPS,
    MRI_STEPS,
    AngleRange,
    Beam,
    CompressCoils,
    Prewhiten,
    Recipe,
    Role,
    Span,
    Step,
    name_of,
    reason,
    with_step,
)

MAX_RECIPE_BYTES = 1 << 20
_KINDS = {name_of(kind): kind for kind in CT_STEPS + MRI_STEPS}


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the user may tell of scans: a recipe, or single values of one."""
    known = parser.add_argument_group("what the files may not say")
    known.add_argument("--recipe", type=Path, metavar="FILE", help="JSON file; the values below go before its own")
    known.add_argument("--centre", type=finite, metavar="COLUMN", help="rotation centre in columns of the file (CT)")
    known.add_argument(
        "--angles", type=_angles, metavar="START:STOP[:inclusive]", help="projection angles in degrees: --angles=-90:90"
    )
    known.add_argument("--clockwise", action="store_true", default=None, help="turn all angles the other way (CT)")
    known.add_argument(
        "--beam",
        type=_beam,
        metavar="AXIS:DETECTOR:ELEMENT",
        help="distances in mm from the source to the rotation axis and to the detector, and the side of a detector"
        " element: of one detector row a fan beam, of several a cone beam",
    )
    known.add_argument("--pixel", type=finite, metavar="MM", help="side of a detector element of a parallel beam")
    known.add_argument("--matrix", type=_matrix, metavar="ROWSxCOLUMNS", help="size of images along a trajectory (MRI)")
    known.add_argument("--layout", choices=("projections", "sinograms"), help="what one image of a stack is (CT)")
    known.add_argument(
        "--transposed",
        action="store_true",
        default=None,
        help="rows and columns of every image are swapped: the detector lay on its side, or columns are views (CT)",
    )
    known.add_argument("--state", choices=("counts", "transmission", "attenuation"), help="what the numbers mean (CT)")
    known.add_argument("--keep-oversampling", action="store_true", default=None, help="leave the readout wide (MRI)")
    known.add_argument(
        "--role",
        type=_role,
        action="append",
        default=[],
        metavar="ROLE=SOURCE",
        help="take a dataset, variable or file as projections, flats, darks, angles, monitor, kspace, trajectory,"
        " density, noise or interference; SOURCE#A:B takes frames of it, ROLE= says there is none; may be repeated",
    )
    part = parser.add_argument_group("which part is taken")
    part.add_argument("--views", type=_span, metavar="A:B[:STEP]", help="views (CT)")
    part.add_argument("--rows", type=_span, metavar="A:B", help="detector rows (CT) or slices (MRI)")
    part.add_argument("--columns", type=_span, metavar="A:B", help="detector columns (CT)")
    part.add_argument("--bin", type=int, metavar="N", help="put N x N detector elements together (CT)")
    steps = parser.add_argument_group("how it is prepared")
    steps.add_argument(
        "--step",
        type=_step,
        action="append",
        default=[],
        metavar="NAME[:FIELD=VALUE,...]",
        help=f"a step of the preparation, beside the usual ones and in its usual place: {', '.join(_KINDS)}; may be"
        " repeated, as in --step rings:method=fitting --step zingers",
    )
    steps.add_argument("--no-step", action="append", default=[], choices=list(_KINDS), help="leave out a step")
    steps.add_argument(
        "--prewhiten", action="store_true", help="make the noise of the coils equal first (MRI): --step prewhiten"
    )
    steps.add_argument(
        "--virtual-coils", type=int, metavar="N", help="compress to N coils (MRI): --step compress:coils=N"
    )


def told_recipe(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe of the file, with the single values put in; steps are put in by `with_told_steps`.

    Raises
    ------
    BadInput
        The file is no recipe, or a value is out of range.
    """
    recipe = Recipe() if arguments.recipe is None else read_recipe(arguments.recipe)
    known: dict[str, Any] = {
        "centre_px": arguments.centre,
        "angles": arguments.angles,
        "clockwise": arguments.clockwise,
        "beam": arguments.beam,
        "pixel_mm": arguments.pixel,
        "matrix": arguments.matrix,
        "layout": arguments.layout,
        "transposed": arguments.transposed,
        "state": arguments.state,
        "keep_oversampling": arguments.keep_oversampling,
        "roles": (*recipe.known.roles, *arguments.role) if arguments.role else None,
    }
    part: dict[str, Any] = {
        "views": arguments.views,
        "rows": arguments.rows,
        "columns": arguments.columns,
        "bin": arguments.bin,
    }
    return _checked(
        msgspec.structs.replace(
            recipe,
            known=msgspec.structs.replace(recipe.known, **{k: v for k, v in known.items() if v is not None}),
            selection=msgspec.structs.replace(recipe.selection, **{k: v for k, v in part.items() if v is not None}),
        ),
        "the command line",
    )


def with_told_steps(arguments: argparse.Namespace, usual: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return the steps of a scan, by its recipe or the usual ones, with those of the command line."""
    told: list[Step] = list(arguments.step)
    if arguments.prewhiten:
        told.append(Prewhiten())
    if arguments.virtual_coils:
        told.append(CompressCoils(coils=arguments.virtual_coils))
    steps = tuple(step for step in usual if name_of(step) not in arguments.no_step)
    for step in told:
        steps = with_step(steps, step)
    checked = _checked(Recipe(steps=steps), "the command line")
    assert checked.steps is not None
    return checked.steps


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a JSON file.

    Raises
    ------
    BadInput
        The file is missing, too large, or no recipe; the message names the field.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise BadInput(f"{path.name}: {path.stat().st_size} bytes are too many for a recipe")
        text = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: the recipe cannot be read ({error.strerror})") from error
    try:
        return msgspec.json.decode(text, type=Recipe)
    except msgspec.MsgspecError as error:
        raise BadInput(
            f"{path.name}: is not a recipe ({reason(error)})", "Save one from the window, or by info."
        ) from error


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as a JSON file for people, in one go."""
    text = msgspec.json.format(msgspec.json.encode(recipe), indent=2) + b"\n"
    with new_file(path, len(text)) as temporary:
        temporary.write_bytes(text)


def _checked(recipe: Recipe, where: str) -> Recipe:
    """Return the recipe if all its values lie within their limits."""
    try:
        return msgspec.convert(msgspec.to_builtins(recipe), Recipe)
    except msgspec.ValidationError as error:
        raise BadInput(f"{where}: {reason(error)}") from error


def _angles(text: str) -> AngleRange:
    start, stop, *rest = [*text.split(":"), ""][:4]
    if rest not in ([""], ["inclusive", ""]):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form START:STOP or START:STOP:inclusive")
    return AngleRange(start_deg=finite(start), stop_deg=finite(stop), inclusive=rest[0] == "inclusive")


def _beam(text: str) -> Beam:
    parts = text.split(":")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form AXIS:DETECTOR:ELEMENT, in mm")
    axis, detector, element = (finite(part) for part in parts)
    return Beam(source_axis_mm=axis, source_detector_mm=detector, pixel_mm=element)


def _role(text: str) -> Role:
    role, equals, source = text.partition("=")
    if not equals or not role:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ROLE=SOURCE")
    return Role(role=role, source=source)


def _span(text: str) -> Span:
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(part == "" or part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B or A:B:STEP")
    first, last, step = [*(int(part) if part else None for part in parts), None][:3]
    return Span(first=first or 0, last=last, step=1 if step is None else step)


def _step(text: str) -> Step:
    name, _, fields = text.partition(":")
    if name not in _KINDS:
        raise argparse.ArgumentTypeError(f"there is no step {name!r}; there are {', '.join(_KINDS)}")
    values: dict[str, Any] = {}
    for pair in filter(None, fields.split(",")):
        field, equals, value = pair.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{pair!r} is not of the form FIELD=VALUE")
        # several numbers are joined by plus signs, as the commas part the fields
        values[field] = value.split("+") if field == "coefficients" else value
    try:
        recipe = msgspec.convert({"steps": [{"step": name, **values}]}, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise argparse.ArgumentTypeError(f"step {name}: {reason(error)}") from error
    assert recipe.steps is not None
    return recipe.steps[0]


def _matrix(text: str) -> tuple[int, int]:
    rows, cross, columns = text.partition("x")
    if not cross or not rows.isdigit() or not columns.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ROWSxCOLUMNS")
    return int(rows), int(columns)


def finite(text: str) -> float:
    """Return the finite number that an argument says."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value
