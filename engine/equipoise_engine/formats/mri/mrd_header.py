"""The header of ISMRMRD files: text of XML that nobody vouches for.

Source: Inati et al. 2017, ISMRM Raw data format, doi:10.1002/mrm.26089; schema at https://ismrmrd.github.io.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np

MAX_HEADER_BYTES = 4 << 20
READOUT_AXIS, FIELD_KNOWN = "equipoise_readout_axis", "equipoise_field_of_view_known"
WEIGHTS_KNOWN = "equipoise_third_coordinate_is_weight"
"""Parameters of the user in headers that this program writes."""


def header_root(text: str) -> ElementTree.Element | None:
    """Return the root of a header, or None where it cannot be read: damaged, too long, or with entities of its own."""
    if len(text) > MAX_HEADER_BYTES or "<!DOCTYPE" in text:
        return None
    try:
        return ElementTree.fromstring(text.strip("\ufeff\x00 \t\r\n"))
    except (ElementTree.ParseError, ValueError):
        return None


def encoded_space(root: ElementTree.Element, name: str, number: int = 0) -> tuple[list[float], list[int]] | None:
    """Return extent (mm) and matrix along x, y, z of the encoded or the reconstructed space, None without them.

    Parameters
    ----------
    name
        "encodedSpace" or "reconSpace".
    number
        Which of the encodings of the header.
    """
    found = root.findall(".//{*}encoding")
    space = found[number].find(f"{{*}}{name}") if 0 <= number < len(found) else None
    if space is None:
        return None
    try:
        extent = [float(space.findtext(f"{{*}}fieldOfView_mm/{{*}}{axis}", "nan")) for axis in "xyz"]
        matrix = [int(space.findtext(f"{{*}}matrixSize/{{*}}{axis}", "0")) for axis in "xyz"]
    except ValueError:
        return None
    return (extent, matrix) if all(np.isfinite(extent[:2])) and min(extent[:2]) > 0 else None


def limits_of(root: ElementTree.Element, name: str, number: int = 0) -> tuple[int, int, int] | None:
    """Return the smallest and the largest value of a counter, and the one at the centre; None where they are not told.

    Parameters
    ----------
    name
        As "kspace_encoding_step_1".
    number
        Which of the encodings of the header.
    """
    found = root.findall(".//{*}encoding")
    limits = found[number].find(f"{{*}}encodingLimits/{{*}}{name}") if 0 <= number < len(found) else None
    if limits is None:
        return None
    words = [limits.findtext(f"{{*}}{part}", "").strip() for part in ("minimum", "maximum", "center")]
    if not all(word.isdecimal() and len(word) < 10 for word in words):
        return None
    low, high, centre = (int(word) for word in words)
    return low, high, centre


def user_number(root: ElementTree.Element, name: str) -> float | None:
    """Return a number among the parameters of the user in a header, or None where it is not there."""
    for item in root.findall("./{*}userParameters/*"):
        if item.findtext("{*}name", "").strip() == name:
            try:
                return float(item.findtext("{*}value", ""))
            except ValueError:
                return None
    return None
