"""Float conversions as compiled streams: 16 numbers at a time from one array into another, at memory speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir  # type: ignore[import-untyped]

from worker.models.kernels.lanes import Float, Int, Value, select
from worker.models.kernels.lanes_llvm import I16, I32, I64, LANES, LlvmMachine, Position
from worker.models.kernels.rounding import half_bits, half_value


class Stream(NamedTuple):
    """A conversion of bits to bits."""

    name: str
    source: ir.Type
    target: ir.Type
    convert: Callable[[Int], Value]


def _narrow_bf16(bits: Int) -> Int:
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return select(nan, (bits >> 16) | 64, rounded)


def _narrow_f16(bits: Int) -> Int:
    return half_bits(bits.as_float())


def _widen_f16(half: Int) -> Float:
    return half_value(half)


STREAMS = {
    stream.name: stream
    for stream in (
        Stream("widen_f16", I16, I32, _widen_f16),
        Stream("widen_bf16", I16, I32, lambda half: half << 16),
        Stream("narrow_f16", I32, I16, _narrow_f16),
        Stream("narrow_bf16", I32, I16, _narrow_bf16),
    )
}


def build_stream(stream: Stream) -> ir.Module:
    """The module of one function, ``kernel(source, target, n_vectors)``, for at least one vector of 16."""
    module = ir.Module(name=stream.name)
    arguments = [ir.PointerType(stream.source), ir.PointerType(stream.target), I64]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name="kernel")
    source, target, n_vectors = function.args
    machine = LlvmMachine(function)
    builder = machine.builder

    def address(array: ir.Value, kind: ir.Type, position: Position) -> ir.Value:
        start = builder.gep(array, [(position * LANES).raw])
        return builder.bitcast(start, ir.PointerType(ir.VectorType(kind, LANES)))

    def convert(position: Position) -> None:
        bits = builder.load(address(source, stream.source, position), align=stream.source.width // 8)
        wide = bits if stream.source is I32 else builder.zext(bits, ir.VectorType(I32, LANES))
        result = stream.convert(Int(machine, wide))
        made = result.bits().raw if isinstance(result, Float) else result.raw
        made = made if stream.target is I32 else builder.trunc(made, ir.VectorType(I16, LANES))
        builder.store(made, address(target, stream.target, position), align=stream.target.width // 8)

    machine.fold(Position(builder, n_vectors), convert)
    machine.finish()
    return module
