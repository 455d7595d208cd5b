"""Text files of scanners: sections of `key = value`, and the numbered images that they name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise_engine.errors import BadInput

MAX_BYTES = 1 << 20
"""Bytes of a text file of a scanner that are read; real ones have some thousand."""
MAX_NAMED = 5
"""Missing images that are named one by one."""
_IMAGES = frozenset({".tif", ".tiff"})


@dataclass(frozen=True)
class Section:
    """What stands in one section of a text file of a scanner.

    Parameters
    ----------
    path
        The file, for messages.
    values
        Texts by their keys, in lower case and without the blanks around them.
    """

    path: Path
    values: Mapping[str, str]

    def text(self, key: str) -> str:
        """Return what stands under a key, empty where it is missing."""
        return self.values.get(key.lower(), "")

    def number(self, key: str, otherwise: float | None = None) -> float:
        """Return the number under a key, or `otherwise` where it is missing.

        Raises
        ------
        BadInput
            It is missing and there is nothing to take otherwise, or it is no finite number.
        """
        said = self.text(key)
        if not said:
            if otherwise is None:
                raise BadInput(f"{self.path.name}: {key!r} is missing", "Copy the file from the scanner again.")
            return otherwise
        try:
            value = float(said.replace(",", "."))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadInput(f"{self.path.name}: {key!r} is {said[:40]!r}, no number")
        return value

    def length(self, key: str) -> float:
        """Return the number under a key, which must be above zero. Raises BadInput where it is not."""
        value = self.number(key)
        if value <= 0:
            raise BadInput(f"{self.path.name}: {key!r} is {value:g}; it must be above zero")
        return value

    def count(self, key: str) -> int:
        """Return the whole number under a key, which must be above zero. Raises BadInput where it is not."""
        value = self.number(key)
        if value < 1 or value != int(value):
            raise BadInput(f"{self.path.name}: {key!r} is {value:g}; a whole number above zero is needed")
        return int(value)


def begins_with_section(path: Path, names: Sequence[str]) -> bool:
    """Whether the first line of a file that is not blank opens one of these sections, as "[Acquisition]"."""
    with path.open("rb") as stream:
        start = stream.read(256)
    lines = [line.strip() for line in start.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    return bool(lines) and lines[0].strip("[] ").lower() in {n.lower() for n in names} and lines[0].startswith("[")


def section_of(path: Path, *names: str) -> Section:
    """Return the sections of a text file with these names as one; what stands twice counts as it stands last.

    Raises
    ------
    BadInput
        The file is too large or not text, or has none of the sections.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise BadInput(f"{path.name}: {size} bytes; a text file of a scanner has at most {MAX_BYTES}")
    raw = path.read_bytes()
    if b"\0" in raw:
        raise BadInput(f"{path.name}: is no text file (it holds zero bytes)", "Copy it from the scanner again.")
    wanted = {name.lower() for name in names}
    section, found = "", False
    values: dict[str, str] = {}
    for line in raw.decode("utf-8-sig", "replace").splitlines():
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1].strip().lower()
            found = found or section in wanted
        elif section in wanted and "=" in text and not text.startswith(";"):
            key, _, value = text.partition("=")
            values[" ".join(key.split()).lower()] = value.strip()
    if not found:
        raise BadInput(f"{path.name}: has no section [{names[0]}]", "Copy it from the scanner again.")
    return Section(path, values)


def numbered_images(folder: Path, prefix: str, path: Path) -> dict[int, Path]:
    """Return the TIFF files of a folder that are called `prefix` and a number, by this number.

    Parameters
    ----------
    path
        File named in messages.

    Raises
    ------
    BadInput
        The folder cannot be listed, or has none.
    """
    pattern = re.compile(re.escape(prefix) + r"(\d{1,9})\.tiff?", re.IGNORECASE)
    try:
        files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in _IMAGES]
    except OSError as error:
        raise BadInput(f"{path.name}: the folder of its images cannot be listed ({error.strerror})") from error
    found: dict[int, Path] = {}
    for file in files:
        match = pattern.fullmatch(file.name)
        if match is not None and file.is_file():
            found.setdefault(int(match[1]), file)
    if not found:
        raise BadInput(
            f"{path.name}: its images {prefix}0000.tif and so on are not in its folder ({len(files)} other TIFF files)",
            "Keep the images beside this file, with the names that the scanner gave them.",
        )
    return found


def views_of(found: Mapping[int, Path], count: int, path: Path) -> tuple[list[int], str]:
    """Return which of `count` views are there, from 0, and a sentence about those that are not, empty without any.

    Parameters
    ----------
    found
        Files by their numbers; the first view is the lowest, which is 0 or 1 in a scan that is complete.
    path
        File named in messages.

    Raises
    ------
    BadInput
        Less than half of the views are there.
    """
    first = 0 if 0 in found else 1
    views = [number - first for number in sorted(found) if number - first < count]
    present = set(views)
    missing = [view for view in range(count) if view not in present]
    if not missing:
        return views, ""
    some = next(iter(found.values()))
    digits = re.findall(r"\d+", some.stem)[-1]
    names = [some.name.replace(digits, f"{view + first:0{len(digits)}d}") for view in missing[:MAX_NAMED]]
    said = ", ".join(names) + (", ..." if len(missing) > MAX_NAMED else "")
    if len(views) * 2 < count:
        raise BadInput(
            f"{path.name}: {len(missing)} of {count} images are missing: {said}", "Copy all images of the scan."
        )
    return views, f"{len(missing)} of {count} images are missing, and their views were left out: {said}."
