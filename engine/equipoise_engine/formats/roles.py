"""What the user tells about the parts of a scan, parsed: `recipe.Role` as a name and frames of it."""

from __future__ import annotations

import re
from pathlib import Path

from equipoise_engine.errors import BadInput
from equipoise_engine.recipe import Known

_FRAMES = re.compile(r"#(\d{0,18}):(\d{0,18})(?::(\d{1,18}))?$")


def parsed(source: str) -> tuple[str, slice | None]:
    """Return the name in a source like "/entry/data#10:90:2", and the frames of it; None takes all.

    The name is empty where the frames stand among the projections ("#0:10"). An end that is left out ("#10:") is the
    first or the last frame. A "#" that no frames follow belongs to the name.

    Raises
    ------
    BadInput
        The frames cannot be: none at all, or a step of zero.
    """
    found = _FRAMES.search(source)
    if found is None:
        return source.strip(), None
    first, last, step = (int(text) if text else None for text in found.groups())
    if step == 0 or (last is not None and last <= (first or 0)):
        raise BadInput(f"{source}: takes no frame", "Frames are written #first:end:step; #0:10 takes the first ten.")
    return source[: found.start()].strip(), slice(first or 0, last, step or 1)


def told_roles(known: Known, path: Path, allowed: tuple[str, ...]) -> dict[str, str]:
    """Return the source that the user tells for each role; an empty one says that the scan has no such part.

    Parameters
    ----------
    path
        File named in messages.
    allowed
        Roles that a scan of this kind has.

    Raises
    ------
    BadInput
        A role is not among the allowed ones, or told twice.
    """
    told: dict[str, str] = {}
    for role in known.roles:
        if role.role not in allowed:
            raise BadInput(
                f"{path.name}: no part of such a scan has the role {role.role!r}", f"Roles are {', '.join(allowed)}."
            )
        if role.role in told:
            raise BadInput(
                f"{path.name}: the role {role.role!r} is given twice, as {told[role.role]!r} and {role.source!r}"
            )
        told[role.role] = role.source.strip()
    return told
