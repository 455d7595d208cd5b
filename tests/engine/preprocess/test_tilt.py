"""A leaning axis is turned upright, whichever rows are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.preprocess.selection import selected
from equipoise_engine.preprocess.tilt import Turn, turn_of
from equipoise_engine.recipe import Selection, Span, Tilt

ROWS, COLUMNS = 60, 90


def _projection(angle_deg: float) -> np.ndarray:
    """Return a smooth body turned clockwise, as drawn, about the middle of the detector `(row, column)`."""
    angle = np.deg2rad(angle_deg)
    up = 0.5 * (ROWS - 1) - np.arange(ROWS)[:, None]
    right = np.arange(COLUMNS)[None, :] - 0.5 * (COLUMNS - 1)
    along = up * np.cos(angle) + right * np.sin(angle)
    across = right * np.cos(angle) - up * np.sin(angle)
    return (np.exp(-((across / 6) ** 2)) * (1.5 + np.sin(along / 5))).astype(np.float32)


@pytest.mark.parametrize("angle_deg", [-4.0, 0.7, 10.0])
def test_the_axis_becomes_upright(angle_deg: float) -> None:
    leaning = _projection(angle_deg)
    if angle_deg > 0:
        assert leaning[0].argmax() > leaning[-1].argmax()  # its top leans to the right
    turn = Turn(np.deg2rad(angle_deg), ROWS, COLUMNS)
    result = turn.apply(np.ascontiguousarray(leaning[:, None, :]), 0, np.arange(ROWS))[:, 0]
    inside = np.s_[12:-12, 25:-25]
    assert result[inside] == pytest.approx(_projection(0.0)[inside], abs=5e-3)


def test_a_crop_is_enough() -> None:
    random = np.random.default_rng(0)
    values = random.random((200, 2, COLUMNS)).astype(np.float32)
    turn = Turn(np.deg2rad(3.0), 200, COLUMNS)
    whole = turn.apply(values, 0, np.arange(200))
    for row in (0, 5, 100, 199):
        first, last = max(row - turn.margin, 0), min(row + turn.margin + 1, 200)
        assert last - first < 60
        one = turn.apply(values[first:last], first, np.array([row - first]) + first)
        assert one[0] == pytest.approx(whole[row], abs=1e-5)


def test_rows_may_lie_further_apart_than_columns() -> None:
    leaning = np.ascontiguousarray(_projection(3.0)[:, None, :])
    # rows 1, 4, 7, ... have the same middle as all rows
    turn = Turn(np.deg2rad(3.0), ROWS // 3, COLUMNS, taller=3.0)
    some = turn.apply(leaning[1::3], 0, np.arange(ROWS // 3))[:, 0]
    assert some[4:-4, 25:-25] == pytest.approx(_projection(0.0)[1::3][4:-4, 25:-25], abs=2e-2)


def test_no_turn_needs_no_rows() -> None:
    assert Turn(0.0, ROWS, COLUMNS).margin == 0


def test_a_part_is_turned_about_the_middle_of_the_whole_detector() -> None:
    random = np.random.default_rng(1)
    values = ndimage.gaussian_filter(random.random((2, 80, 96)), (0, 2, 2)).astype(np.float32)
    scan = CtAcquisition(
        path=Path("made.h5"),
        format="made",
        state=DataState.TRANSMISSION,
        projections=values,
        geometry=ParallelBeam(np.array([0.0, 1.5])),
    )
    rows = np.arange(80)

    def turned(part: CtAcquisition, angle_deg: float) -> np.ndarray:
        stack = np.ascontiguousarray(part.projections[:].transpose(1, 0, 2))
        return turn_of(part, Tilt(angle_deg=angle_deg)).apply(stack, 0, rows[: stack.shape[0]])

    whole = turned(scan, 4.0)
    part = selected(scan, Selection(rows=Span(first=6, last=58), columns=Span(first=10, last=70)))
    assert isinstance(part, CtAcquisition)
    assert turned(part, 4.0)[14:-14, :, 14:-14] == pytest.approx(whole[20:44, :, 24:56], abs=1e-3)
    binned = selected(scan, Selection(rows=Span(first=6, last=58), columns=Span(first=10, last=70), bin=2))
    assert isinstance(binned, CtAcquisition)
    means = whole[6:58, :, 10:70].reshape(26, 2, 2, 30, 2).mean(axis=(1, 4))
    assert turned(binned, 4.0)[8:-8, :, 8:-8] == pytest.approx(means[8:-8, :, 8:-8], abs=5e-3)
