"""Kernels for a GPU: one thread computes one block.

The same source as for the processor is traced with a single lane. Threads read their numbers from the device's memory
and write their bytes to it. NVPTX code generation fuses no multiply and add unless it is told to, divides and takes
square roots with correct rounding, and keeps denormal numbers; so the bytes are the same.

What tests run on a processor is this very code: there, functions that count take the place of the two registers that
say which thread it is.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir  # type: ignore[import-untyped]

from worker.models.kernels.catalogue import Kernel
from worker.models.kernels.lanes import Array, Float, Index
from worker.models.kernels.lanes_llvm import F32, I8, I32, I64, LlvmMachine, LlvmOutput, LlvmTable, Position, as_i64
from worker.models.kernels.machine import Block, Extras

THREADS = 64
"""Threads that are started together, as a CUDA block."""


class GlobalArray(Array[Float]):
    """Floats in the device's memory, from one position on."""

    def __init__(self, machine: LlvmMachine, pointer: ir.Value, start: Position) -> None:
        self.machine, self.pointer, self.start = machine, pointer, start

    def __getitem__(self, position: Index) -> Float:
        builder = self.machine.builder
        address = builder.gep(self.pointer, [as_i64(self.start + position)], inbounds=True)
        return Float(self.machine, self.machine.spread(builder.load(address)))

    def __setitem__(self, position: Index, value: Float) -> None:
        raise TypeError("the input cannot be stored to")


def build_threads(kernel: Kernel) -> ir.Module:
    """The module of ``kernel``, with the arguments of :mod:`worker.models.kernels.block_walk`, and of ``row_means``."""
    module = ir.Module(name=kernel.name)
    pointers = [ir.PointerType(kind) for kind in (F32, I8, F32, F32, I32)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*pointers, I64, I64]), name="kernel")
    x, out, weights, row_means, table, n_blocks, per_row = function.args
    machine = LlvmMachine(function, lanes=1)
    builder = machine.builder

    def one_block(number: Position) -> None:
        extras = Extras(table=LlvmTable(machine, table))
        if kernel.weighted:
            in_row = Position(builder, builder.urem(number.raw, per_row))
            extras = extras._replace(weights=GlobalArray(machine, weights, in_row * kernel.length))
        if kernel.row_mean:
            row = Position(builder, builder.udiv(number.raw, per_row))
            extras = extras._replace(row_mean=GlobalArray(machine, row_means, row)[0])
        start = builder.gep(out, [(number * kernel.size_bytes).raw])
        numbers = GlobalArray(machine, x, number * kernel.length)
        kernel.body(machine, Block(numbers, LlvmOutput(machine, start, kernel.size_bytes), extras))

    _for_each(machine, n_blocks, one_block)
    if kernel.row_mean:
        _add_row_means(module)
    return module


def _add_row_means(module: ir.Module) -> None:
    """``row_means(x, means, n_rows, row_length)``: the mean square of every row, summed in element order."""
    arguments = [ir.PointerType(F32), ir.PointerType(F32), I64, I64]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name="row_means")
    x, means, n_rows, row_length = function.args
    machine = LlvmMachine(function, lanes=1)
    builder = machine.builder

    def one_row(number: Position) -> None:
        row = GlobalArray(machine, x, Position(builder, builder.mul(number.raw, row_length)))
        total = machine.fold(Position(builder, row_length), lambda i, s: s + row[i] * row[i], machine.f32(0))
        mean = total / Float(machine, machine.spread(builder.sitofp(row_length, F32)))
        scalar = builder.extract_element(mean.raw, ir.Constant(I32, 0))
        builder.store(scalar, builder.gep(means, [number.raw]))

    _for_each(machine, n_rows, one_row)


def _for_each(machine: LlvmMachine, count: ir.Value, body: Callable[[Position], None]) -> None:
    """Run the body for this thread's position, if it is below ``count``. Closes the function."""
    builder = machine.builder
    builder.function.calling_convention = "ptx_kernel"
    thread, block = (machine.call(f"llvm.nvvm.read.ptx.sreg.{name}.x", I32, []) for name in ("tid", "ctaid"))
    number = builder.add(builder.mul(builder.zext(block, I64), ir.Constant(I64, THREADS)), builder.zext(thread, I64))
    with builder.if_then(builder.icmp_unsigned("<", number, count)):
        body(Position(builder, number))
    machine.finish()
