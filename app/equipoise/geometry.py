"""What is known of angles and beam, in words. No Qt here."""

from __future__ import annotations

import re
from math import atan, degrees

import msgspec

from equipoise_engine.protocol import ScanFacts
from equipoise_engine.recipe import AngleRange, Beam, Known, Recipe, Span

_GIVEN = "given by the user"
"""Source of what a recipe said when a scan was opened."""
_NEAR_DEG = 0.2
_MOVES_THE_CENTRE = frozenset({"roles", "layout", "state", "angles", "beam"})


def fact(facts: ScanFacts | None, name: str) -> str:
    """Return a value of the geometry of a scan by its name, or nothing."""
    return next((value for other, value in facts.geometry if other == name), "") if facts is not None else ""


def centre_was_found(facts: ScanFacts | None, known: Known) -> bool:
    """Whether the rotation centre that is known is the one that the files say or that was found in the projections."""
    if facts is None or known.centre_px is None or known.centre_px != facts.recipe.known.centre_px:
        return False
    return not any(match.role == "rotation centre" and match.source == _GIVEN for match in facts.matched)


def centre_word(facts: ScanFacts | None, known: Known) -> str:
    """Return where the rotation centre comes from: "given" by the user, "found" in the projections, else nothing."""
    if known.centre_px is not None and not centre_was_found(facts, known):
        return "given"
    matched = facts.matched if facts is not None and known.centre_px is not None else ()
    return "found" if any(m.role == "rotation centre" and m.source.startswith("found") for m in matched) else ""


def without_found_centre(facts: ScanFacts | None, recipe: Recipe) -> Recipe:
    """Return a recipe that leaves a rotation centre that was found to be found again: it is not called given."""
    if not centre_was_found(facts, recipe.known):
        return recipe
    return msgspec.structs.replace(recipe, known=msgspec.structs.replace(recipe.known, centre_px=None))


def with_value(facts: ScanFacts | None, known: Known, field: str, value: object) -> Known:
    """Return what is known with another value of one of its fields.

    A rotation centre that was found is forgotten where the value may move it: it is then found anew.
    """
    changed = msgspec.structs.replace(known, **{field: value})
    if field in _MOVES_THE_CENTRE and changed != known and centre_was_found(facts, known):
        return msgspec.structs.replace(changed, centre_px=None)
    return changed


def usual_range(facts: ScanFacts | None) -> AngleRange:
    """Return the evenly spaced angles that come nearest to those of a scan; half a turn where they are not known."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", fact(facts, "angles"))
    # of some of the views only, the angles say nothing of the others
    views = facts.shape[0] if facts is not None and facts.recipe.selection.views == Span() else 0
    if len(numbers) < 2 or views < 2:
        return AngleRange(start_deg=0.0, stop_deg=180.0)
    start, last = float(numbers[0]), float(numbers[1])
    step = (last - start) / (views - 1)
    for turn in (180.0, 360.0):
        if abs(last - start - turn) < _NEAR_DEG:
            return AngleRange(start_deg=start, stop_deg=start + turn, inclusive=True)
        if abs(last + step - start - turn) < _NEAR_DEG:
            return AngleRange(start_deg=start, stop_deg=start + turn)
    return AngleRange(start_deg=start, stop_deg=last, inclusive=True)


def angles_text(angles: AngleRange, views: int) -> str:
    """Return what evenly spaced angles mean for so many views, as "181 views, one each 1 degree, the last at 180"."""
    if views < 2:
        return ""
    step = (angles.stop_deg - angles.start_deg) / (views - 1 if angles.inclusive else views)
    last = angles.start_deg + step * (views - 1)
    return f"{views} views, {step:.6g}° apart, the last at {last:.6g}°"


def beam_text(beam: Beam, columns: int) -> str:
    """Return magnification, size of a voxel and angle of the fan of a diverging beam.

    Parameters
    ----------
    columns
        Of the detector; 0 where not known.
    """
    magnification = beam.source_detector_mm / beam.source_axis_mm
    words = [f"magnification {magnification:.4g}", f"voxel {beam.pixel_mm / magnification:.4g} mm"]
    if columns:
        fan = 2 * degrees(atan(0.5 * columns * beam.pixel_mm / beam.source_detector_mm))
        words.append(f"fan {fan:.3g}°")
    if magnification < 1:
        words.append("the detector would lie before the axis")
    return ", ".join(words)


def beam_of(facts: ScanFacts | None) -> Beam:
    """Return the lengths of the diverging beam of a scan; those of a small scanner where it has none."""
    found = re.findall(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?) mm", fact(facts, "beam"))
    if len(found) == 3:
        axis, detector, pixel = (float(text) for text in found)
        together = facts.recipe.selection.bin if facts is not None else 1
        return Beam(source_axis_mm=axis, source_detector_mm=detector, pixel_mm=pixel / together)
    return Beam(source_axis_mm=500.0, source_detector_mm=1000.0, pixel_mm=0.2)
