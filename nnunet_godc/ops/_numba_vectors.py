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

from nnunet_godc.compiled_loops import LANES

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
        undefined, first = ir.Constant(_LLVM, ir.Undefined), ir.IntType(32)
        one = builder.insert_element(undefined, number, ir.Constant(first, 0))
        everywhere = ir.Constant(ir.VectorType(first, LANES), [0] * LANES)
        return builder.fmul(builder.shuffle_vector(one, undefined, everywhere), value, flags=FAST)

    return vector(types.float32, vector), generate


@_intrinsic
def total(typing_context: Any, value: Any) -> Any:
    """The sum of a vector's numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _LLVM])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(function, [ir.Constant(ir.FloatType(), 0.0), *arguments], fastmath=FAST)

    return types.float32(vector), generate
