"""One rotation centre out of what several methods say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise_engine.preprocess.centre.estimate import CentreEstimate

AGREEMENT_PX = 1.5
"""Methods agree that differ by less than this."""
DISSENT = 0.7
"""Share of the confidence that is lost where all others disagree."""
AT_EDGE = 0.3
"""Most confidence in a place at the edge of what was looked at."""
LOW = 0.5
"""Confidence below which the user should check."""


@dataclass(frozen=True)
class Vote:
    """The rotation centre after all methods.

    Parameters
    ----------
    centre_px
        Detector column of the axis; 0 is the middle of the first column.
    confidence
        From 0 to 1; below 0.5 the user should check it.
    at_edge
        Whether the best value lies at the edge of what was looked at: the axis may then lie beyond.
    text
        What was found and how sure it is, for the user.
    estimates
        What each method says, the most confident first.
    """

    centre_px: float
    confidence: float
    at_edge: bool
    text: str
    estimates: tuple[CentreEstimate, ...]


def vote(found: list[CentreEstimate], columns: int) -> Vote:
    """Return what most of the confidence is in: the mean of those that agree, less sure where others do not.

    Parameters
    ----------
    found
        At least one.
    columns
        Number of detector columns.
    """
    ranked = sorted(found, key=lambda one: one.confidence, reverse=True)

    def party(leader: CentreEstimate) -> list[CentreEstimate]:
        return [one for one in ranked if abs(one.centre_px - leader.centre_px) < AGREEMENT_PX]

    # of equally supported ones the most confident leads
    agreeing = max((party(one) for one in ranked), key=lambda some: sum(one.confidence for one in some))
    others = [one for one in ranked if one not in agreeing]
    weights = np.array([one.confidence**2 + 1e-6 for one in agreeing])
    centre = float(np.average([one.centre_px for one in agreeing], weights=weights))
    support, against = sum(one.confidence for one in agreeing), sum(one.confidence for one in others)
    # those that agree but roughly back each other less
    backing = [one.confidence / (1.0 + ((one.centre_px - centre) / (0.5 * AGREEMENT_PX)) ** 2) for one in agreeing]
    confidence = 1.0 - float(np.prod([1.0 - one for one in backing]))
    confidence *= 1.0 - DISSENT * against / max(support + against, 1e-12)
    at_edge = agreeing[0].at_edge
    if at_edge:
        confidence = min(confidence, AT_EDGE)
    text = f"rotation centre {centre:.2f} px: " + ", ".join(_said(one) for one in agreeing)
    if others:
        text += "; not " + ", ".join(_said(one) for one in others)
    if at_edge:
        first, last = agreeing[0].positions_px[0], agreeing[0].positions_px[-1]
        text += f"; the best value lies at the edge of {first:.0f} to {last:.0f} px, the axis may lie beyond"
    if not 0.2 * columns < centre < 0.8 * columns:
        text += f"; it is near the edge of the detector of {columns} columns"
    if confidence < LOW:
        text += "; low confidence: compare slices about other centres, or give the centre"
    return Vote(centre, round(confidence, 3), at_edge, text, tuple(ranked))


def _said(one: CentreEstimate) -> str:
    return f"{one.method} {one.centre_px:.2f} (confidence {one.confidence:.2f})"
