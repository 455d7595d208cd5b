"""The benchmark of the operators: what it measures is there, fits together, and is told."""

from __future__ import annotations

import pytest
import torch

from equipoise_engine.bench import Row, bench_operators, memory_bandwidth, table
from equipoise_engine.errors import BadInput

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(bench_operators([(32, 12)], [1, 3], CPU, repeats=1))


def test_every_operator_is_measured_for_every_batch(rows: list[Row]) -> None:
    own = {(row.operator, row.implementation, row.batch) for row in rows if row.implementation.startswith("equipoise")}
    for operator, engine in (
        ("joseph parallel", "equipoise matrix-free"),
        ("joseph parallel", "equipoise sparse"),
        ("joseph fan", "equipoise matrix-free"),
        ("joseph fan", "equipoise sparse"),
        ("strip parallel", "equipoise sparse"),
        ("gradient parallel", "equipoise matrix-free"),
        ("fbp parallel", "equipoise"),
        ("fbp fan", "equipoise"),
        ("nufft radial", "equipoise"),
        ("nufft spiral", "equipoise"),
    ):
        assert {(operator, engine, batch) for batch in (1, 3)} <= own
    assert {"finufft", "scikit-image"} <= {row.implementation for row in rows}


def test_figures_are_times_and_errors_of_single_precision(rows: list[Row]) -> None:
    for row in rows:
        assert (row.size, row.views, row.device) == (32, 12, "cpu")
        times = [value for value in (row.forward_ms, row.adjoint_ms) if value is not None]
        assert times
        assert min(times) > 0
        assert row.bound_ms > 0
        if row.implementation.startswith("equipoise") and row.adjoint_error is not None:
            assert row.adjoint_error < 1e-5


def test_a_larger_batch_moves_more(rows: list[Row]) -> None:
    bounds = {row.batch: row.bound_ms for row in rows if row.implementation == "equipoise matrix-free"}
    assert bounds[3] == pytest.approx(3 * bounds[1])


def test_the_table_has_a_line_for_each_row(rows: list[Row]) -> None:
    head, *lines, foot = table(rows)
    assert len(lines) == len(rows)
    assert "bound ms" in head
    assert foot.startswith("bound: ")
    for row, line in zip(rows, lines, strict=True):
        assert line.startswith(row.operator)
        assert f"{row.size}/{row.views}" in line


def test_bandwidth_is_that_of_a_computer() -> None:
    assert 1e8 < memory_bandwidth(CPU) < 1e13


def test_nothing_cannot_be_measured() -> None:
    with pytest.raises(BadInput, match="0 views"):
        bench_operators([(32, 0)], [1], CPU)
    with pytest.raises(BadInput, match="0 repeats"):
        bench_operators([(32, 4)], [1], CPU, repeats=0)
