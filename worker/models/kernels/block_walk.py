"""The walk over the blocks: a kernel becomes one LLVM function that takes any number of them.

The function's arguments are ``(x, out, weights, row_means, table, n_blocks, blocks_per_row)``. It goes through the
blocks 16 at a time: their numbers are transposed into a tile ``[element][lane]`` that stays in the first-level cache,
the kernel works on whole vectors, and the finished bytes are collected in a buffer and copied out. In the last group
the missing lanes repeat the last block, and their bytes are dropped.
"""

from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped]

from worker.models.kernels.catalogue import Kernel
from worker.models.kernels.lanes import Float
from worker.models.kernels.lanes_llvm import (
    BYTES,
    F32,
    I1,
    I8,
    I32,
    I64,
    LANES,
    V_F32,
    LlvmArray,
    LlvmMachine,
    LlvmOutput,
    LlvmTable,
    Position,
)
from worker.models.kernels.machine import Block, Extras
from worker.models.kernels.point_search import Permutes

SHORT_BLOCK = 32
GROUPS_AHEAD = 2


def build_module(kernel: Kernel, permutes: Permutes) -> ir.Module:
    """The module of one function, ``kernel``, that applies a kernel to any number of blocks, at least one."""
    module = ir.Module(name="kernel")
    arguments = [ir.PointerType(kind) for kind in (F32, I8, F32, F32, I32)] + [I64, I64]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name="kernel")
    for argument in function.args[:5]:
        argument.add_attribute("noalias")
    machine = LlvmMachine(function, permutes)
    n_blocks = function.args[5]
    machine.fold(_groups(machine.builder, n_blocks), lambda position: _do_group(machine, kernel, position * LANES))
    machine.finish()
    return module


def _do_group(machine: LlvmMachine, kernel: Kernel, start: Position) -> None:
    """Sixteen blocks: load, compute, copy out."""
    builder = machine.builder
    x, out, weights, row_means, table, n_blocks, per_row = builder.function.args
    last = builder.sub(n_blocks, ir.Constant(I64, 1))
    lanes = [_lower(builder, (start + lane).raw, last) for lane in range(LANES)]
    _fetch_ahead(machine, x, start, kernel.length)
    tile = _load_tile(machine, x, lanes, kernel.length)
    extras = Extras(table=LlvmTable(machine, table))
    if kernel.weighted:
        in_row = [builder.urem(lane, per_row) for lane in lanes]
        extras = extras._replace(weights=_load_tile(machine, weights, in_row, kernel.length))
    if kernel.row_mean:
        rows = [builder.udiv(lane, per_row) for lane in lanes]
        extras = extras._replace(row_mean=_gather_means(machine, row_means, rows))
    buffer = machine.scratch(I8, LANES * kernel.size_bytes)
    kernel.body(machine, Block(tile, LlvmOutput(machine, buffer, kernel.size_bytes), extras))
    count = _lower(builder, builder.sub(n_blocks, start.raw), ir.Constant(I64, LANES))
    size = ir.Constant(I64, kernel.size_bytes)
    target = builder.gep(out, [builder.mul(start.raw, size)])
    copied = [target, buffer, builder.mul(count, size), ir.Constant(I1, 0)]
    machine.call("llvm.memcpy.p0.p0.i64", ir.VoidType(), copied)


def build_row_means() -> ir.Module:
    """The module of one function, ``kernel(x, means, n_rows, row_length)``: the mean square of every row.

    Squares are summed in element order; 16 rows go side by side. ``row_length`` is a multiple of 16.
    """
    module = ir.Module(name="row_means")
    arguments = [ir.PointerType(F32), ir.PointerType(F32), I64, I64]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name="kernel")
    x, means, n_rows, row_length = function.args
    machine = LlvmMachine(function)
    builder = machine.builder
    divisor = machine.spread(builder.sitofp(row_length, F32))
    last = builder.sub(n_rows, ir.Constant(I64, 1))
    squares = machine.floats(LANES)

    def group(position: Position) -> None:
        rows = [_lower(builder, (position * LANES + lane).raw, last) for lane in range(LANES)]
        starts = [builder.gep(x, [builder.mul(row, row_length)]) for row in rows]

        def add(chunk: Position, total: Float) -> Float:
            for column in _load_square(machine, starts, chunk * LANES):
                value = Float(machine, column)
                total = total + value * value
            return total

        chunks = Position(builder, builder.udiv(row_length, ir.Constant(I64, LANES)))
        total = machine.fold(chunks, add, machine.f32(0))
        squares[0] = Float(machine, builder.fdiv(total.raw, divisor))
        for lane, row in enumerate(rows):
            value = builder.extract_element(squares[0].raw, ir.Constant(I32, lane))
            builder.store(value, builder.gep(means, [row]))

    machine.fold(_groups(builder, n_rows), group)
    machine.finish()
    return module


def _groups(builder: ir.IRBuilder, count: ir.Value) -> Position:
    """How many groups of 16 there are, with the last one perhaps not full."""
    return Position(builder, builder.udiv(builder.add(count, ir.Constant(I64, LANES - 1)), ir.Constant(I64, LANES)))


def _lower(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return builder.select(builder.icmp_signed("<", left, right), left, right)


def _fetch_ahead(machine: LlvmMachine, x: ir.Value, start: Position, length: int) -> None:
    """Ask for the numbers of a later group of short blocks, whose kernels would else wait for memory.

    The processor does not foresee the order in which a tile is read. Addresses past the end do no harm here.
    """
    if length > SHORT_BLOCK:
        return
    builder = machine.builder
    later = builder.gep(x, [((start + GROUPS_AHEAD * LANES) * length).raw])
    for line in range(length):
        address = builder.bitcast(builder.gep(later, [ir.Constant(I64, line * LANES)]), BYTES)
        read, keep, data = (ir.Constant(I32, number) for number in (0, 3, 1))
        machine.call("llvm.prefetch.p0", ir.VoidType(), [address, read, keep, data])


def _load_tile(machine: LlvmMachine, source: ir.Value, lanes: list[ir.Value], length: int) -> LlvmArray[Float]:
    """Blocks of ``length`` floats, numbered by lane, as a tile ``[element][lane]``."""
    builder = machine.builder
    tile = LlvmArray(machine, machine.scratch(V_F32, length), Float)
    starts = [builder.gep(source, [builder.mul(lane, ir.Constant(I64, length))]) for lane in lanes]

    def load(position: Position) -> None:
        first = position * LANES
        for element, column in enumerate(_load_square(machine, starts, first)):
            tile[first + element] = Float(machine, column)

    machine.fold(length // LANES, load)
    return tile


def _load_square(machine: LlvmMachine, starts: list[ir.Value], first: Position) -> list[ir.Value]:
    """Sixteen floats of each lane, from ``first`` on, as one vector per position."""
    builder = machine.builder
    rows = []
    for start in starts:
        address = builder.bitcast(builder.gep(start, [first.raw]), ir.PointerType(V_F32))
        rows.append(builder.load(address, align=4))
    return machine.transposed(rows)


def _gather_means(machine: LlvmMachine, means: ir.Value, rows: list[ir.Value]) -> Float:
    builder = machine.builder
    vector: ir.Value = ir.Constant(V_F32, ir.Undefined)
    for lane, row in enumerate(rows):
        value = builder.load(builder.gep(means, [row]))
        vector = builder.insert_element(vector, value, ir.Constant(I32, lane))
    return Float(machine, vector)
