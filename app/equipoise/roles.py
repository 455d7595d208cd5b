"""The parts of a scan by their roles: what was taken for each, what the user says, what else might fit. No Qt here."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from equipoise_engine.protocol import MatchFact, Needed, ScanFacts
from equipoise_engine.recipe import Known, Role, Source

CT_ROLES = ("projections", "flats", "darks", "angles", "monitor")
MRI_ROLES = ("kspace", "trajectory", "density", "noise", "interference")
ROLE_NAMES = {
    "projections": "Projections",
    "flats": "Flats",
    "darks": "Darks",
    "angles": "Angles",
    "monitor": "Beam monitor",
    "kspace": "k-space",
    "trajectory": "Trajectory",
    "density": "Density",
    "noise": "Noise",
    "interference": "Interference",
}
"""Name for people of each role of `recipe.Role`."""
_ALSO_CALLED = {"kspace": ("k-space",), "density": ("density compensation",)}
_LINES = frozenset({"angles", "monitor"})
_SERIES = frozenset({"density", "noise"})


@dataclass(frozen=True)
class RoleRow:
    """One role of a scan.

    Parameters
    ----------
    role
        As in `recipe.Role`.
    found
        What the reader took, or empty.
    told
        What the user says: a source, empty for none, or None where nothing is said.
    shape
        Of what was taken.
    reason
        Why it was taken.
    needed
        Whether the scan cannot be opened without it.
    """

    role: str
    found: str
    told: str | None
    shape: tuple[int, ...]
    reason: str
    needed: bool


def kind_of(facts: ScanFacts | None, needed: Needed | None) -> str:
    """Return "ct" or "mri": that of an open scan, else judged by what is missing."""
    if facts is not None:
        return facts.kind
    missing = set() if needed is None else set(needed.missing)
    return "mri" if missing & {*MRI_ROLES, "matrix"} else "ct"


def role_rows(facts: ScanFacts | None, needed: Needed | None, known: Known) -> tuple[RoleRow, ...]:
    """Return the roles that a scan of its kind may have, in reading order."""
    roles = MRI_ROLES if kind_of(facts, needed) == "mri" else CT_ROLES
    told = {role.role: role.source for role in known.roles}
    missing = set() if needed is None else set(needed.missing)
    if known.angles is not None:
        missing.discard("angles")
    rows = []
    for role in roles:
        match = None if facts is None else _match(facts, role)
        rows.append(
            RoleRow(
                role=role,
                found="" if match is None else match.source,
                told=told.get(role),
                shape=() if match is None else match.shape,
                reason="" if match is None else match.reason,
                needed=role in missing and not told.get(role),
            )
        )
    return tuple(rows)


def with_role(known: Known, role: str, source: str | None) -> Known:
    """Return what is known with another source for a role; None leaves it to the reader, empty says there is none."""
    others = tuple(other for other in known.roles if other.role != role)
    roles = others if source is None else (*others, Role(role=role, source=source.strip()))
    return msgspec.structs.replace(known, roles=roles)


def fitting(role: str, sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """Return the sources whose shape may have a role, in the order of the files."""
    return tuple(source for source in sources if _fits(role, source.shape))


def _match(facts: ScanFacts, role: str) -> MatchFact | None:
    names = (role, *_ALSO_CALLED.get(role, ()))
    return next((match for match in facts.matched if match.role.lower() in names), None)


def _fits(role: str, shape: tuple[int, ...]) -> bool:
    if not shape:
        # nothing is known of it
        return True
    long = sum(1 for size in shape if size > 1)
    if role in _LINES:
        return long == 1
    return long >= 1 if role in _SERIES else long >= 2
