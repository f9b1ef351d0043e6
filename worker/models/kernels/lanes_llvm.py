"""The machine that compiles: every value of a kernel becomes an LLVM vector of 16 lanes (of one, for a GPU).

Vectors are spelled out, nothing is left to the auto-vectoriser: LLVM splits them into whatever the processor has
(one AVX-512 register, two of AVX2, four of SSE or NEON). Separate multiplies and adds are never fused, since no
fast-math flag allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]

from worker.models.kernels.lanes import Array, Element, Float, Index, Int, Mask, Raw, Scratch, Table
from worker.models.kernels.machine import Machine, OutputBytes
from worker.models.kernels.point_search import Permutes, emit_search

LANES = 16
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
V_F32, V_I32 = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
BYTES = ir.PointerType(I8)

_FLOAT_OPS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT_OPS = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "and": "and_",
    "or": "or_",
    "xor": "xor",
    "shl": "shl",
    "lshr": "lshr",
}


class Position:
    """A loop counter, for addresses only."""

    def __init__(self, builder: ir.IRBuilder, raw: ir.Value) -> None:
        self.builder, self.raw = builder, raw

    def __add__(self, other: Index) -> Position:
        return Position(self.builder, self.builder.add(self.raw, as_i64(other)))

    def __mul__(self, other: int) -> Position:
        return Position(self.builder, self.builder.mul(self.raw, as_i64(other)))

    def __rsub__(self, other: int) -> Position:
        return Position(self.builder, self.builder.sub(as_i64(other), self.raw))

    __radd__, __rmul__ = __add__, __mul__


def as_i64(position: Index) -> ir.Value:
    """A position as an LLVM value."""
    return position.raw if isinstance(position, Position) else ir.Constant(I64, int(position))


def float_constant(value: float) -> ir.Constant:
    """A float32 constant; LLVM's text form wants the double of the same value."""
    return ir.Constant(F32, float(np.float32(value)))


class LlvmArray(Scratch[Element]):
    """Vectors in memory."""

    def __init__(self, machine: LlvmMachine, pointer: ir.Value, kind: type[Element]) -> None:
        self.machine, self.pointer, self.kind = machine, pointer, kind

    def _address(self, position: Index) -> ir.Value:
        return self.machine.builder.gep(self.pointer, [as_i64(position)], inbounds=True)

    def __getitem__(self, position: Index) -> Element:
        return self.kind(self.machine, self.machine.builder.load(self._address(position), align=4 * self.machine.lanes))

    def __setitem__(self, position: Index, value: Element) -> None:
        self.machine.builder.store(value.raw, self._address(position), align=4 * self.machine.lanes)

    def scatter(self, position: Int, value: Element) -> None:
        """Store lane after lane."""
        builder = self.machine.builder
        scalars = builder.bitcast(self.pointer, ir.PointerType(value.raw.type.element))
        for lane in range(self.machine.lanes):
            row = builder.extract_element(position.raw, ir.Constant(I32, lane))
            offset = builder.add(
                builder.mul(builder.zext(row, I64), ir.Constant(I64, self.machine.lanes)), ir.Constant(I64, lane)
            )
            element = builder.extract_element(value.raw, ir.Constant(I32, lane))
            builder.store(element, builder.gep(scalars, [offset], inbounds=True))


class LlvmTable(Table):
    """Integers somewhere in memory, read lane after lane."""

    def __init__(self, machine: LlvmMachine, pointer: ir.Value) -> None:
        self.machine, self.pointer = machine, pointer

    def __getitem__(self, position: Int) -> Int:
        builder = self.machine.builder
        vector: ir.Value = ir.Constant(self.machine.v_i32, ir.Undefined)
        for lane in range(self.machine.lanes):
            index = builder.zext(builder.extract_element(position.raw, ir.Constant(I32, lane)), I64)
            element = builder.load(builder.gep(self.pointer, [index], inbounds=True))
            vector = builder.insert_element(vector, element, ir.Constant(I32, lane))
        return Int(self.machine, vector)


class LlvmConstants(Array[Float]):
    """Scalars in the constant section, spread over all lanes when read."""

    def __init__(self, machine: LlvmMachine, pointer: ir.Value) -> None:
        self.machine, self.pointer = machine, pointer

    def __getitem__(self, position: Index) -> Float:
        builder = self.machine.builder
        address = builder.gep(self.pointer, [ir.Constant(I64, 0), as_i64(position)], inbounds=True)
        return Float(self.machine, self.machine.spread(builder.load(address)))

    def __setitem__(self, position: Index, value: Float) -> None:
        raise TypeError("constants cannot be stored to")


class LlvmOutput(OutputBytes):
    """Bytes of 16 blocks, one block after the other."""

    def __init__(self, machine: LlvmMachine, buffer: ir.Value, block_bytes: int) -> None:
        self.machine, self.buffer, self.block_bytes = machine, buffer, block_bytes

    def put(self, offset: Index, value: Int, size_bytes: int) -> None:
        """Extract lane after lane and store it in that lane's block."""
        builder, kind = self.machine.builder, ir.IntType(8 * size_bytes)
        narrow = value.raw if size_bytes == 4 else builder.trunc(value.raw, ir.VectorType(kind, self.machine.lanes))
        start = builder.gep(self.buffer, [as_i64(offset)], inbounds=True)
        for lane in range(self.machine.lanes):
            address = builder.gep(start, [ir.Constant(I64, lane * self.block_bytes)], inbounds=True)
            element = builder.extract_element(narrow, ir.Constant(I32, lane))
            builder.store(element, builder.bitcast(address, ir.PointerType(kind)), align=1)


class LlvmMachine(Machine):
    """Builds the code of one kernel: at the start of an empty function, whose first block is kept for stack space.

    Args:
        function: Where to build.
        permutes: What to use of the processor.
        lanes: Blocks side by side; 1 for the threads of a GPU.
    """

    def __init__(self, function: ir.Function, permutes: Permutes = Permutes.NONE, lanes: int = LANES) -> None:
        self.module, self.permutes, self.lanes = function.module, permutes, lanes
        self.v_f32, self.v_i32, self.v_i1 = (ir.VectorType(scalar, lanes) for scalar in (F32, I32, I1))
        self.entry = function.append_basic_block("entry")
        self.builder = ir.IRBuilder(function.append_basic_block("body"))

    def finish(self) -> None:
        """Close the function."""
        self.builder.ret_void()
        self.builder.position_at_end(self.entry)
        self.builder.branch(self.builder.function.blocks[1])

    # memory

    def floats(self, length: int) -> Scratch[Float]:
        """Stack space."""
        return LlvmArray(self, self.scratch(self.v_f32, length), Float)

    def ints(self, length: int) -> Scratch[Int]:
        """Stack space."""
        return LlvmArray(self, self.scratch(self.v_i32, length), Int)

    def scratch(self, kind: ir.Type, length: int) -> ir.Value:
        """Stack space, reserved once at the function's start."""
        with self.builder.goto_block(self.entry):
            space = self.builder.alloca(kind, ir.Constant(I64, length))
        space.align = 64
        return space

    def constants(self, values: Sequence[float | np.float32]) -> Array[Float]:
        """A table in the constant section."""
        data = ir.Constant(ir.ArrayType(F32, len(values)), [float_constant(float(value)) for value in values])
        variable = ir.GlobalVariable(self.module, data.type, self.module.get_unique_name("table"))
        variable.initializer, variable.global_constant, variable.linkage = data, True, "internal"
        return LlvmConstants(self, variable)

    # control

    def fold(
        self,
        count: Index,
        body: Callable[..., Any],
        *start: Any,
        unroll: int = 1,
        again: Callable[..., Mask] | None = None,
    ) -> Any:
        """A counted loop whose state lives in phi nodes: in registers."""
        builder = self.builder
        before = builder.block
        loop = builder.append_basic_block("loop")
        after = builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        counter = builder.phi(I64)
        counter.add_incoming(ir.Constant(I64, 0), before)
        phis = [builder.phi(value.raw.type) for value in start]
        state = tuple(type(value)(self, phi) for value, phi in zip(start, phis, strict=True))
        for step in range(unroll):
            result = body(Position(builder, counter) + step, *state)
            state = result if isinstance(result, tuple) else () if result is None else (result,)
        following = builder.add(counter, ir.Constant(I64, unroll))
        more = builder.icmp_unsigned("<", following, as_i64(count))
        if again is not None:
            more = builder.and_(more, self.call(f"llvm.vector.reduce.or.v{self.lanes}i1", I1, [again(*state).raw]))
        counter.add_incoming(following, builder.block)
        for phi, first, last in zip(phis, start, state, strict=True):
            phi.add_incoming(first.raw, before)
            phi.add_incoming(last.raw, builder.block)
        builder.cbranch(more, loop, after)
        builder.position_at_end(after)
        return state[0] if len(state) == 1 else state

    def nearest_point(self, table: Table, entry: Int, errors: list[list[Float]]) -> Int:
        """Sixteen points at a time, where the processor can."""
        if self.permutes is Permutes.NONE or not isinstance(table, LlvmTable):
            return super().nearest_point(table, entry, errors)
        raw_errors = [[error.raw for error in levels] for levels in errors]
        return Int(self, emit_search(self, table.pointer, entry.raw, raw_errors))

    # values

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """A 16 x 16 square with rows and columns exchanged: four rounds that swap ever larger halves."""
        rows, builder = list(rows), self.builder
        for distance in (1, 2, 4, 8):
            low = [k if not k & distance else LANES + k - distance for k in range(LANES)]
            high = [k + distance if not k & distance else LANES + k for k in range(LANES)]
            for i in range(LANES):
                if not i & distance:
                    a, b = rows[i], rows[i | distance]
                    rows[i] = builder.shuffle_vector(a, b, ir.Constant(V_I32, low))
                    rows[i | distance] = builder.shuffle_vector(a, b, ir.Constant(V_I32, high))
        return rows

    def counter(self, position: Index) -> Int:
        """A position in every lane."""
        return Int(self, self.spread(self.builder.trunc(as_i64(position), I32)))

    def spread(self, scalar: ir.Value) -> ir.Value:
        """A scalar in every lane."""
        vector = ir.VectorType(scalar.type, self.lanes)
        first = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(
            first, ir.Constant(vector, ir.Undefined), ir.Constant(self.v_i32, [0] * self.lanes)
        )

    def float_constant(self, value: float) -> Raw:
        """A constant vector."""
        return ir.Constant(self.v_f32, [float_constant(value)] * self.lanes)

    def int_constant(self, value: int) -> Raw:
        """A constant vector."""
        return ir.Constant(self.v_i32, [ir.Constant(I32, value)] * self.lanes)

    def mask_constant(self, value: bool) -> Raw:
        """A constant vector of bits."""
        return ir.Constant(self.v_i1, [ir.Constant(I1, int(value))] * self.lanes)

    def float_op(self, name: str, left: Raw, right: Raw) -> Raw:
        """One instruction, without fast-math flags."""
        return getattr(self.builder, _FLOAT_OPS[name])(left, right)

    def int_op(self, name: str, left: Raw, right: Raw) -> Raw:
        """One instruction."""
        return getattr(self.builder, _INT_OPS[name])(left, right)

    def mask_op(self, name: str, left: Raw, right: Raw) -> Raw:
        """One instruction."""
        return getattr(self.builder, _INT_OPS[name])(left, right)

    def float_compare(self, name: str, left: Raw, right: Raw) -> Raw:
        """Ordered, but ``!=`` is unordered: true for NaN."""
        compare = self.builder.fcmp_unordered if name == "!=" else self.builder.fcmp_ordered
        return compare(name, left, right)

    def int_compare(self, name: str, left: Raw, right: Raw) -> Raw:
        """Signed."""
        return self.builder.icmp_signed(name, left, right)

    def select(self, mask: Raw, yes: Raw, no: Raw) -> Raw:
        """One instruction."""
        return self.builder.select(mask, yes, no)

    def sqrt(self, value: Raw) -> Raw:
        """LLVM's intrinsic, which rounds correctly."""
        return self.call(f"llvm.sqrt.v{self.lanes}f32", self.v_f32, [value])

    def call(self, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
        """Call an LLVM intrinsic, declaring it on first use."""
        function = self.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(result, [argument.type for argument in arguments])
            function = ir.Function(self.module, kind, name=name)
        return self.builder.call(function, arguments)

    def float_bits(self, value: Raw) -> Raw:
        """A bitcast."""
        return self.builder.bitcast(value, self.v_i32)

    def bits_float(self, value: Raw) -> Raw:
        """A bitcast."""
        return self.builder.bitcast(value, self.v_f32)

    def truncate(self, value: Raw) -> Raw:
        """One conversion; undefined outside of the range."""
        return self.builder.fptosi(value, self.v_i32)

    def to_float(self, value: Raw) -> Raw:
        """One conversion."""
        return self.builder.sitofp(value, self.v_f32)
