"""Parameters of Bruker ParaVision: text of JCAMP-DX that nobody vouches for.

Source: JCAMP-DX, McDonald and Wilks 1988, doi:10.1366/0003702884428734.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from equipoise_engine.errors import BadInput

MAX_PARAMETER_BYTES = 16 << 20
MAX_VALUES = 1 << 20
_NAME = re.compile(r"##\$([A-Za-z0-9_]+)=(.*)", re.DOTALL)
_REPEATED = re.compile(r"@(\d{1,9})\*\(([^()]{0,64})\)")


class Parameters:
    """The parameters in files of ParaVision, by their names."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self._folder = folder
        self._texts: dict[str, str] = {}
        for name in names:
            if not (folder / name).is_file():
                raise BadInput(f"{folder.name}/{name} is missing", "Copy the folder again, as a whole.")
            size = (folder / name).stat().st_size
            if size > MAX_PARAMETER_BYTES:
                raise BadInput(f"{folder.name}/{name}: {size} bytes; parameters take at most {MAX_PARAMETER_BYTES}")
            text = (folder / name).read_text(encoding="latin-1")
            if not text.startswith("##TITLE="):
                raise BadInput(f"{folder.name}/{name}: no parameters of ParaVision", "Copy the folder again.")
            # A value ends where the next label or a comment begins.
            for part in re.split(r"\n(?=##|\$\$)", text):
                if (found := _NAME.match(part)) is not None:
                    self._texts[found[1]] = found[2].strip()

    def word(self, name: str, otherwise: str = "") -> str:
        """Return a parameter as text, without its size and brackets."""
        text = self._texts.get(name, otherwise)
        return re.sub(r"^\([^)]*\)\s*", "", text).strip().strip("<>")

    def numbers(self, name: str) -> list[float]:
        """Return a parameter as numbers; none where it is missing."""
        text = self.word(name)
        while (found := _REPEATED.search(text)) is not None:
            count = int(found[1])
            if count > MAX_VALUES or len(text) + count * len(found[2]) > MAX_PARAMETER_BYTES:
                raise BadInput(f"{self._folder.name}: {name} repeats a value {found[1]} times")
            text = f"{text[: found.start()]}{(found[2] + ' ') * count}{text[found.end() :]}"
        values = [float(word) for word in text.split()]
        if not np.isfinite(values).all():
            raise BadInput(f"{self._folder.name}: {name} holds values that are not finite")
        return values

    def whole(self, name: str, otherwise: int | None = None, *, least: int = 1) -> int:
        """Return a parameter as one whole number."""
        values = self.numbers(name)
        if not values and otherwise is not None:
            return otherwise
        if not values or values[0] != int(values[0]) or not least <= values[0] < 1 << 31:
            raise BadInput(
                f"{self._folder.name}: {name} is {values[:3] or 'missing'}; a whole number from {least} is needed",
                "Copy the folder again.",
            )
        return int(values[0])
