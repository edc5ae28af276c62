"""Vectors of eight floats for loops compiled by numba.

A loop over channels that numba vectorises by itself tests at every tap whether any two of its arrays overlap, and is
made for many channels at a time, of which there are few: written with these vectors the same loops took half the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from nnunet_godc.kernels.numba import LANES

FAST = ("contract", "nsz", "reassoc")  # sums may be reordered and multiply-adds contracted; NaN keeps its meaning

_LLVM = ir.VectorType(ir.FloatType(), LANES)


class _Vector(types.Type):
    pass


vector = _Vector(f"float32x{LANES}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _LLVM)  # type: ignore[no-untyped-call]


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba's decorator, whose result takes one argument less than it says: the context of the typing."""
    decorated: Callable[..., Any] = intrinsic(function)
    return decorated


def _address(context: Any, builder: Any, signature: Any, array: Any, index: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _LLVM.as_pointer())


def _everywhere(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    undefined, index = ir.Constant(_LLVM, ir.Undefined), ir.IntType(32)
    one = builder.insert_element(undefined, number, ir.Constant(index, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))


@_intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """Eight numbers of a contiguous float32 array (n,), from `index` on; bounds are not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, signature, *arguments), align=4)

    return vector(array, types.int64), generate


@_intrinsic
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write eight numbers into a contiguous float32 array (n,), from `index` on; bounds are not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, value = arguments
        builder.store(value, _address(context, builder, signature, array, index), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


@_intrinsic
def zeros(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_LLVM, [0.0] * LANES)

    return vector(), generate


@_intrinsic
def add(typing_context: Any, left: Any, right: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=FAST)

    return vector(vector, vector), generate


@_intrinsic
def multiply(typing_context: Any, left: Any, right: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments, flags=FAST)

    return vector(vector, vector), generate


@_intrinsic
def scale(typing_context: Any, number: Any, value: Any) -> Any:
    """A number times a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, value = arguments
        return builder.fmul(_everywhere(builder, number), value, flags=FAST)

    return vector(types.float32, vector), generate


@_intrinsic
def totals(typing_context: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """The sums of the numbers of eight vectors, as one vector: halves are added, of two vectors at a time."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width = 1
        while len(arguments) > 1:
            low = [lane - lane % (2 * width) + lane % width + lane // width % 2 * LANES for lane in range(LANES)]
            halves = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), [i + by for i in low]) for by in (0, width)]
            arguments = [
                builder.fadd(*(builder.shuffle_vector(left, right, half) for half in halves), flags=FAST)
                for left, right in zip(arguments[::2], arguments[1::2], strict=True)
            ]
            width *= 2
        return arguments[0]

    return vector(*[vector] * LANES), generate


def multiply_block(rows: int, vectors: int) -> Callable[..., Any]:
    """A function that adds to a block of C, of so many rows and vectors, the product of A and B, (rows, k) and (k, n).

    The block is kept in registers. A's element (i, p) is ``a[a_at + i * a_row + p * a_step]``, B's vector j of row p
    begins at ``b[b_at + p * b_row + LANES * j]``, C's of row i at ``c[c_at + i * c_row + LANES * j]``.
    """
    places = [(row, column) for row in range(rows) for column in range(vectors)]

    def block(
        typing_context: Any,
        a: Any,
        a_at: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_at: Any,
        b_row: Any,
        c: Any,
        c_at: Any,
        c_row: Any,
        count: Any,
    ) -> Any:
        index = types.int64

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, a_at, a_row, a_step, b, b_at, b_row, c, c_at, c_row, count = arguments
            kinds = signature.args[0], signature.args[4], signature.args[7]
            starts = [
                context.make_array(kind)(context, builder, array).data
                for kind, array in zip(kinds, (a, b, c), strict=True)
            ]

            def number(value: int) -> Any:
                return ir.Constant(ir.IntType(64), value)

            def place(start: Any, at: Any, row: Any, step: Any, column: int) -> Any:
                moved = builder.add(builder.add(at, builder.mul(row, step)), number(LANES * column))
                return builder.bitcast(builder.gep(start, [moved]), _LLVM.as_pointer())

            sums = {}
            for row, column in places:
                sums[row, column] = cgutils.alloca_once(builder, _LLVM)
                at = place(starts[2], c_at, number(row), c_row, column)
                builder.store(builder.load(at, align=4), sums[row, column])
            with cgutils.for_range(builder, count) as loop:
                right = [
                    builder.load(place(starts[1], b_at, loop.index, b_row, column), align=4)
                    for column in range(vectors)
                ]
                step = builder.add(a_at, builder.mul(loop.index, a_step))
                for row in range(rows):
                    at = builder.add(step, builder.mul(number(row), a_row))
                    left = _everywhere(builder, builder.load(builder.gep(starts[0], [at])))
                    for column in range(vectors):
                        product = builder.fmul(left, right[column], flags=FAST)
                        summed = builder.fadd(builder.load(sums[row, column]), product, flags=FAST)
                        builder.store(summed, sums[row, column])
            for row, column in places:
                at = place(starts[2], c_at, number(row), c_row, column)
                builder.store(builder.load(sums[row, column]), at, align=4)
            return context.get_dummy_value()

        return types.void(a, index, index, index, b, index, index, c, index, index, index), generate

    return _intrinsic(block)
