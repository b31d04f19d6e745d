"""Several numbers as one value inside numba kernels: 16 float32 ("floats") or 8 float64 ("doubles").

LLVM's own vectoriser gives up on loops over rows of one array (it cannot prove that they do not overlap), so they are
written with vectors. ``load``, ``store``, ``splat``, ``iota``, ``where``, ``root``, ``total`` and ``any_lane`` work on
them, besides + - * / and the comparisons, and & between those; scalars widen by themselves. LLVM turns 512 bits into
one AVX-512, two AVX or four SSE/NEON registers.

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

LANES, WIDE_LANES = 16, 8
# Kernels call an intrinsic without its typing context, which type checkers cannot know.
_intrinsic: Callable[..., Any] = intrinsic
_infer_global: Any = infer_global
# Fused multiply-add is welcome; no reordering, so results do not depend on where a kernel was inlined.
_FLAGS = ("contract", "nsz")


class _VectorType(types.Type):
    """Base of numbers and truths.

    Attributes:
        llvm: the type in LLVM.
        suffix: how LLVM's functions of it end.
    """

    def __init__(self, name: str, element: ir.Type, lanes: int, suffix: str) -> None:
        super().__init__(name=name)
        self.llvm, self.suffix = ir.VectorType(element, lanes), suffix


class _Mask(_VectorType):
    def __init__(self, lanes: int) -> None:
        super().__init__(f"boolx{lanes}", ir.IntType(1), lanes, f"v{lanes}i1")


class _Numbers(_VectorType):
    """Of the numba type ``dtype``; comparisons give a ``mask``."""

    def __init__(self, dtype: types.Float, element: ir.Type, lanes: int) -> None:
        super().__init__(f"{dtype}x{lanes}", element, lanes, f"v{lanes}f{dtype.bitwidth}")
        self.dtype, self.mask = dtype, _Mask(lanes)

    def can_convert_from(self, typingctx: Any, other: types.Type) -> Any:
        return Conversion.promote if isinstance(other, types.Float | types.Integer) else None


floats = _Numbers(types.float32, ir.FloatType(), LANES)
doubles = _Numbers(types.float64, ir.DoubleType(), WIDE_LANES)
_OF_DTYPE, _OF_MASK = {x.dtype: x for x in (floats, doubles)}, {x.mask: x for x in (floats, doubles)}


@register_default(_Numbers)
@register_default(_Mask)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


def _splat(builder: ir.IRBuilder, scalar: Any, vector: ir.VectorType) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


@lower_cast(types.Float, _Numbers)
@lower_cast(types.Integer, _Numbers)
def _widen(context: Any, builder: ir.IRBuilder, fromty: types.Type, toty: Any, value: Any) -> Any:
    return _splat(builder, context.cast(builder, value, fromty, toty.dtype), toty.llvm)


def _define_binary(op: Any, vector: _VectorType, result: types.Type, scalars: Any, emit: Any) -> None:
    """``op`` of two vectors, or of one and a scalar of the types ``scalars``."""

    @_infer_global(op)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and vector in args and all(a == vector or isinstance(a, scalars) for a in args):
                return signature(result, vector, vector)
            return None

    @lower_builtin(op, vector, vector)
    def _lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return emit(builder, *args)


for _vector in (floats, doubles):
    for _op, _name in (
        (operator.add, "fadd"),
        (operator.sub, "fsub"),
        (operator.mul, "fmul"),
        (operator.truediv, "fdiv"),
    ):
        _define_binary(
            _op, _vector, _vector, types.Number, lambda b, x, y, name=_name: getattr(b, name)(x, y, flags=_FLAGS)
        )
    for _op, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")):
        _define_binary(_op, _vector, _vector.mask, types.Number, lambda b, x, y, sign=_sign: b.fcmp_ordered(sign, x, y))
    _define_binary(operator.and_, _vector.mask, _vector.mask, (), lambda b, x, y: b.and_(x, y))


def _address(context: Any, builder: ir.IRBuilder, array_type: Any, array: Any, offset: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _OF_DTYPE[array_type.dtype].llvm.as_pointer())


def _vector_in(array: Any) -> Any:
    """The type of vectors of a flat array; None of others."""
    flat = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    return _OF_DTYPE.get(array.dtype) if flat else None


@_intrinsic
def load(typingctx: Any, array: Any, offset: types.Type) -> Any:
    """The values of a contiguous array that start at ``offset`` (not checked)."""
    if (vector := _vector_in(array)) is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], *args), align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), codegen


@_intrinsic
def store(typingctx: Any, array: Any, offset: types.Type, value: types.Type) -> Any:
    """Write values into a contiguous array from ``offset`` on (not checked)."""
    if (vector := _vector_in(array)) is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        at = _address(context, builder, sig.args[0], *args[:2])
        builder.store(args[2], at, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@_intrinsic
def splat(typingctx: Any, value: Any) -> Any:
    """One number in all lanes."""
    vector = _OF_DTYPE.get(value, floats)
    return vector(vector.dtype), lambda context, builder, sig, args: _splat(builder, args[0], vector.llvm)


@_intrinsic
def iota(typingctx: Any) -> Any:
    """0, 1, .. 15."""
    values = ir.Constant(floats.llvm, [float(i) for i in range(LANES)])
    return floats(), lambda context, builder, sig, args: values


@_intrinsic
def where(typingctx: Any, condition: Any, yes: types.Type, no: types.Type) -> Any:
    """Lane by lane, ``yes`` where the condition holds, else ``no``."""
    if (vector := _OF_MASK.get(condition)) is None:
        return None
    return vector(condition, vector, vector), lambda context, builder, sig, args: builder.select(*args)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[Any], flags: tuple[str, ...]) -> Any:
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, arguments, fastmath=flags)


@_intrinsic
def root(typingctx: Any, value: Any) -> Any:
    """Square roots, NaN of negative numbers."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.sqrt.{value.suffix}", value.llvm, args, ())

    return value(value), codegen


@_intrinsic
def total(typingctx: Any, value: Any) -> Any:
    """The sum over the lanes."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        element = value.llvm.element
        name = f"llvm.vector.reduce.fadd.{value.suffix}"
        # "reassoc" lets the sum be a tree; the tree is fixed for a given machine.
        return _call(builder, name, element, [ir.Constant(element, -0.0), *args], ("reassoc",))

    return value.dtype(value), codegen


@_intrinsic
def any_lane(typingctx: Any, condition: Any) -> Any:
    """Whether the condition holds in some lane."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.vector.reduce.or.{condition.suffix}", condition.llvm.element, args, ())

    return types.boolean(condition), codegen
