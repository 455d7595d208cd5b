"""Arithmetic on eight slices at once, that compiled kernels put into vector registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

LANES = 8


def _add_scaled(typing: Any, out: Any, at: Any, values: Any, source: Any, weight: Any) -> Any:
    """Do `out[at : at + 8] += weight * values[source : source + 8]`, without a check of bounds.

    For use in compiled kernels: left to itself, the compiler does one slice after the other, because it cannot know
    that `out` and `values` do not overlap.

    Parameters
    ----------
    out, values
        Contiguous arrays of one axis, float32 or float64, of the same type.
    at, source
        First elements, not negative.
    weight
        A number of the same type.
    """
    del typing, at, source
    if not (
        out.ndim == values.ndim == 1 and out.layout == values.layout == "C" and out.dtype == values.dtype == weight
    ):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(context.get_value_type(out.dtype), LANES)

        def place(kind: Any, array: Any, index: Any) -> Any:
            start = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
            return builder.bitcast(start, vector.as_pointer())

        kinds = signature.args
        where = place(kinds[0], arguments[0], arguments[1])
        here = builder.load(where, align=out.dtype.bitwidth // 8)
        there = builder.load(place(kinds[2], arguments[2], arguments[3]), align=out.dtype.bitwidth // 8)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[4], ir.IntType(32)(0))
        same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        scale = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), same)
        builder.store(builder.fadd(here, builder.fmul(scale, there)), where, align=out.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(out, types.intp, values, types.intp, weight), generate


add_scaled: Any = intrinsic(_add_scaled)
