"""Indexing of arrays whose values are read, or made, when they are asked for."""

from __future__ import annotations

from typing import Any


def full_key(key: Any, axes: int, what: str) -> list[Any]:
    """Return one index for each axis: what an ellipsis or a short key leaves out are whole axes.

    Raises
    ------
    IndexError
        There are more indices than axes, or two ellipses.
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    ellipses = [i for i, k in enumerate(keys) if k is Ellipsis]
    missing = axes - (len(keys) - len(ellipses))
    if missing < 0 or len(ellipses) > 1:
        raise IndexError(f"{len(keys)} indices for {what} of {axes} axes")
    at = ellipses[0] if ellipses else len(keys)
    keys[at : at + len(ellipses)] = [slice(None)] * missing
    return keys
