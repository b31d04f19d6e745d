"""Rows of 16 float32 values as one value inside numba kernels.

LLVM's own vectoriser gives up on the compositing loops (it cannot prove that the rows of a tile do not
overlap), so they are written with vectors. ``load``, ``store``, ``splat``, ``iota``, ``where``, ``total`` and
``any_lane`` work on them, besides + - * / and the comparisons; scalars widen by themselves. LLVM turns 16
lanes into one AVX-512, two AVX or four SSE/NEON registers.

Numba's cache of compiled kernels does not notice changes of this file: delete __pycache__ after one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.core.imputils import lower_builtin, lower_cast
from numba.core.typeconv.castgraph import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic

LANES = 16
# Kernels call an intrinsic without its typing context, which type checkers cannot know.
_intrinsic: Callable[..., Any] = intrinsic
_infer_global: Any = infer_global
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_BOOLS = ir.VectorType(ir.IntType(1), LANES)
_INDICES = ir.VectorType(ir.IntType(32), LANES)
# Fused multiply-add is welcome; no reordering, so results do not depend on where a kernel was inlined.
_FLAGS = ("contract", "nsz")


class _VectorType(types.Type):
    """Base of the two vector types."""


class _Floats(_VectorType):
    def __init__(self) -> None:
        super().__init__(name="float32x16")

    def can_convert_from(self, typingctx: Any, other: types.Type) -> Any:
        return Conversion.promote if isinstance(other, types.Float | types.Integer) else None


class _Mask(_VectorType):
    def __init__(self) -> None:
        super().__init__(name="boolx16")


floats, mask = _Floats(), _Mask()


@register_default(_Floats)
class _FloatsModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, _FLOATS)


@register_default(_Mask)
class _MaskModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, _BOOLS)


def _splat(builder: ir.IRBuilder, scalar: Any, vector: ir.VectorType) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(_INDICES, [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


@lower_cast(types.Float, _Floats)
@lower_cast(types.Integer, _Floats)
def _widen(context: Any, builder: ir.IRBuilder, fromty: types.Type, toty: types.Type, value: Any) -> Any:
    return _splat(builder, context.cast(builder, value, fromty, types.float32), _FLOATS)


def _define_binary(op: Any, result: types.Type, emit: Any) -> None:
    @_infer_global(op)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and floats in args and all(a == floats or isinstance(a, types.Number) for a in args):
                return signature(result, floats, floats)
            return None

    @lower_builtin(op, floats, floats)
    def _lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return emit(builder, *args)


for _op, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _define_binary(_op, floats, lambda b, x, y, name=_name: getattr(b, name)(x, y, flags=_FLAGS))
for _op, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")):
    _define_binary(_op, mask, lambda b, x, y, sign=_sign: b.fcmp_ordered(sign, x, y))


def _address(context: Any, builder: ir.IRBuilder, array_type: Any, array: Any, offset: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _FLOATS.as_pointer())


def _is_flat(array: types.Type) -> bool:
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype == types.float32


@_intrinsic
def load(typingctx: Any, array: types.Type, offset: types.Type) -> Any:
    """The 16 values of a contiguous float32 array that start at ``offset`` (not checked)."""
    if not _is_flat(array):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], *args), align=4)

    return floats(array, types.intp), codegen


@_intrinsic
def store(typingctx: Any, array: types.Type, offset: types.Type, value: types.Type) -> Any:
    """Write 16 values into a contiguous float32 array from ``offset`` on (not checked)."""
    if not _is_flat(array):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, sig.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, floats), codegen


@_intrinsic
def splat(typingctx: Any, value: types.Type) -> Any:
    """One number in all lanes."""
    return floats(types.float32), lambda context, builder, sig, args: _splat(builder, args[0], _FLOATS)


@_intrinsic
def iota(typingctx: Any) -> Any:
    """0, 1, .. 15."""
    values = ir.Constant(_FLOATS, [float(i) for i in range(LANES)])
    return floats(), lambda context, builder, sig, args: values


@_intrinsic
def where(typingctx: Any, condition: types.Type, yes: types.Type, no: types.Type) -> Any:
    """Lane by lane, ``yes`` where the condition holds, else ``no``."""
    return floats(mask, floats, floats), lambda context, builder, sig, args: builder.select(*args)


def _reduction(name: str, start: Any, vector: ir.VectorType) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        arguments = ([start] if start is not None else []) + [args[0]]
        function_type = ir.FunctionType(vector.element, [a.type for a in arguments])
        suffix = "v16f32" if vector is _FLOATS else "v16i1"
        function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.vector.reduce.{name}.{suffix}")
        # "reassoc" lets the sum be a tree; the tree is fixed for a given machine.
        return builder.call(function, arguments, fastmath=("reassoc",) if vector is _FLOATS else ())

    return codegen


@_intrinsic
def total(typingctx: Any, value: types.Type) -> Any:
    """The sum over the lanes."""
    return types.float32(floats), _reduction("fadd", ir.Constant(ir.FloatType(), -0.0), _FLOATS)


@_intrinsic
def any_lane(typingctx: Any, condition: types.Type) -> Any:
    """Whether the condition holds in some lane."""
    return types.boolean(mask), _reduction("or", None, _BOOLS)
