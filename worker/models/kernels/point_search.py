"""The search for the nearest grid point, compiled for processors that can pick from a register by index (AVX2 on).

Everywhere else in a kernel a lane is a block. Here that would waste most of the work: lists differ in length, and the
lanes whose rounding is a point have none. So the lanes that do search take turns, and each is searched 16 points at
a time: an element's errors at its few levels lie in a register, and the points' levels pick from it.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from llvmlite import ir  # type: ignore[import-untyped]

LANES = 16
I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
V_F32, V_I32 = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
LARGEST_FLOAT = 3.4028234663852886e38


_PERMUTATIONS = {
    4: ("llvm.x86.avx512.vpermilvar.ps.512", "llvm.x86.avx.vpermilvar.ps.256"),
    8: ("llvm.x86.avx512.permvar.sf.512", "llvm.x86.avx2.permps"),
}
"""For 16 and for 8 numbers, by how many there are to pick from."""


class Permutes(Enum):
    """What the processor has to pick numbers by index."""

    NONE = "none"
    AVX2 = "avx2"
    AVX512 = "avx512"


class Emitter(Protocol):
    """What the search needs of the machine that builds the kernel."""

    builder: ir.IRBuilder
    permutes: Permutes

    def scratch(self, kind: ir.Type, length: int) -> ir.Value:
        """Stack space."""

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """A 16 x 16 square with rows and columns exchanged."""

    def spread(self, scalar: ir.Value) -> ir.Value:
        """A scalar in every lane."""

    def call(self, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
        """Call an LLVM intrinsic."""


def emit_search(machine: Emitter, table: ir.Value, entries: ir.Value, errors: list[list[ir.Value]]) -> ir.Value:
    """Replace every negative entry by the point of its list with the least error, the first of equals.

    Args:
        machine: Where to emit.
        table: Address of the type's search table; its lists are padded to whole vectors.
        entries: ``<16 x i32>``: a point, or the negated position of a list.
        errors: For each element of a point, the error at each level: three, or eight.
    """
    builder = machine.builder
    width = 4 if len(errors[0]) == 3 else 8
    picker = _Picker(machine, width)
    rows = [levels[min(level, len(levels) - 1)] for levels in errors for level in range(width)]
    space = machine.scratch(F32, LANES * len(rows))
    for first in range(0, len(rows), LANES):
        for lane, row in enumerate(machine.transposed(rows[first : first + LANES])):
            address = builder.gep(space, [ir.Constant(I64, lane * len(rows) + first)])
            builder.store(row, builder.bitcast(address, ir.PointerType(V_F32)), align=64)
    results = machine.scratch(V_I32, 1)
    builder.store(entries, results, align=64)
    searching = builder.bitcast(builder.icmp_signed("<", entries, ir.Constant(V_I32, [0] * LANES)), I16)

    before, loop, after = builder.block, builder.append_basic_block("lane"), builder.append_basic_block("searched")
    builder.cbranch(builder.icmp_unsigned("!=", searching, ir.Constant(I16, 0)), loop, after)
    builder.position_at_end(loop)
    left = builder.phi(I16)
    left.add_incoming(searching, before)
    lane = builder.zext(machine.call("llvm.cttz.i16", I16, [left, ir.Constant(ir.IntType(1), 1)]), I64)
    own_errors = builder.gep(space, [builder.mul(lane, ir.Constant(I64, len(rows)))])
    own_result = builder.gep(builder.bitcast(results, ir.PointerType(I32)), [lane])
    position = builder.sub(ir.Constant(I64, 0), builder.sext(builder.load(own_result), I64))
    nearest = _search_list(machine, picker, builder.gep(table, [position]), picker.load(own_errors, len(errors)))
    builder.store(nearest, own_result)
    following = builder.and_(left, builder.sub(left, ir.Constant(I16, 1)))
    left.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_unsigned("!=", following, ir.Constant(I16, 0)), loop, after)
    builder.position_at_end(after)
    return builder.load(results, align=64)


class _Picker:
    """Picks from a few numbers by a few bits, for 16 points at a time."""

    def __init__(self, machine: Emitter, width: int) -> None:
        self.machine, self.width = machine, width
        self.bits = 2 if width == 4 else 3

    def load(self, source: ir.Value, count: int) -> list[ir.Value]:
        """Registers with each element's numbers, repeated to fill them: higher bits then do not matter."""
        builder, kind = self.machine.builder, ir.VectorType(F32, self.width)
        mask = ir.Constant(V_I32, [k % self.width for k in range(LANES)])
        registers = []
        for i in range(count):
            address = builder.gep(source, [ir.Constant(I64, i * self.width)])
            numbers = builder.load(builder.bitcast(address, ir.PointerType(kind)), align=16)
            registers.append(builder.shuffle_vector(numbers, ir.Constant(kind, ir.Undefined), mask))
        return registers

    def pick(self, register: ir.Value, points: ir.Value, element: int) -> ir.Value:
        """The element's numbers at the levels of 16 points."""
        builder = self.machine.builder
        levels = builder.lshr(points, ir.Constant(V_I32, [self.bits * element] * LANES))
        wide, narrow = _PERMUTATIONS[self.width]
        if self.machine.permutes is Permutes.AVX512:
            return self.machine.call(wide, V_F32, [register, levels])
        halves = []
        for first in (0, LANES // 2):
            mask = ir.Constant(ir.VectorType(I32, LANES // 2), list(range(first, first + LANES // 2)))
            numbers, indices = (
                builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask) for v in (register, levels)
            )
            halves.append(self.machine.call(narrow, ir.VectorType(F32, LANES // 2), [numbers, indices]))
        return builder.shuffle_vector(*halves, ir.Constant(V_I32, list(range(LANES))))


def _search_list(machine: Emitter, picker: _Picker, points: ir.Value, registers: list[ir.Value]) -> ir.Value:
    """The best point of one list: its length, then the points."""
    builder = machine.builder
    length = builder.zext(builder.load(points), I64)
    first = builder.gep(points, [ir.Constant(I64, 1)])
    before, loop, after = builder.block, builder.append_basic_block("points"), builder.append_basic_block("found")
    builder.branch(loop)
    builder.position_at_end(loop)
    start, best, where = builder.phi(I64), builder.phi(V_F32), builder.phi(V_I32)
    address = builder.bitcast(builder.gep(first, [start]), ir.PointerType(V_I32))
    candidates = builder.load(address, align=4)
    error: ir.Value = ir.Constant(V_F32, [0.0] * LANES)
    for element, register in enumerate(registers):
        error = builder.fadd(error, picker.pick(register, candidates, element))
    better = builder.fcmp_ordered("<", error, best)
    positions = builder.add(machine.spread(builder.trunc(start, I32)), ir.Constant(V_I32, list(range(LANES))))
    new_best, new_where = builder.select(better, error, best), builder.select(better, positions, where)
    following = builder.add(start, ir.Constant(I64, LANES))
    for phi, initial, new in (
        (start, ir.Constant(I64, 0), following),
        (best, ir.Constant(V_F32, [LARGEST_FLOAT] * LANES), new_best),
        (where, ir.Constant(V_I32, [0] * LANES), new_where),
    ):
        phi.add_incoming(initial, before)
        phi.add_incoming(new, loop)
    builder.cbranch(builder.icmp_unsigned("<", following, length), loop, after)
    builder.position_at_end(after)
    # errors are not negative, so their bits are in the same order as they are
    bits = builder.bitcast(new_best, V_I32)
    least = machine.spread(machine.call("llvm.vector.reduce.umin.v16i32", I32, [bits]))
    nowhere = ir.Constant(V_I32, [0x7FFFFFFF] * LANES)
    equals = builder.select(builder.icmp_signed("==", bits, least), new_where, nowhere)
    chosen = machine.call("llvm.vector.reduce.umin.v16i32", I32, [equals])
    return builder.load(builder.gep(first, [builder.zext(chosen, I64)]))
