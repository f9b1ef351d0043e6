"""A machine that runs kernel code directly, with NumPy: one array element per lane, one call per operation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.models.kernels.lanes import Array, Float, Int, Scratch, Table
from worker.models.kernels.machine import Machine

_FLOAT = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
_INT = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
}
_COMPARE = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}


class NumpyArray(Scratch[Any]):
    def __init__(self, machine: Machine, data: NDArray[Any], kind: type) -> None:
        self.machine, self.data, self.kind = machine, data, kind

    def __getitem__(self, position: int) -> Any:
        return self.kind(self.machine, self.data[position].copy())

    def __setitem__(self, position: int, value: Any) -> None:
        self.data[position] = value.raw

    def scatter(self, position: Int, value: Any) -> None:
        self.data[position.raw, np.arange(self.data.shape[1])] = value.raw


class NumpyTable(Table):
    def __init__(self, machine: Machine, data: NDArray[np.int32]) -> None:
        self.machine, self.data = machine, data

    def __getitem__(self, position: Int) -> Int:
        return Int(self.machine, self.data[position.raw])


class NumpyMachine(Machine):
    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    def floats(self, length: int) -> NumpyArray:
        return NumpyArray(self, np.full((length, self.lanes), np.nan, np.float32), Float)

    def ints(self, length: int) -> NumpyArray:
        return NumpyArray(self, np.full((length, self.lanes), 0x5A5A5A5A, np.int32), Int)

    def constants(self, values: Sequence[Any]) -> Array[Float]:
        return NumpyArray(self, np.repeat(np.array(values, np.float32)[:, None], self.lanes, 1), Float)

    def fold(
        self,
        count: int,
        body: Callable[..., Any],
        *start: Any,
        unroll: int = 1,
        again: Callable[..., Any] | None = None,
    ) -> Any:
        assert count >= 1
        assert count % unroll == 0
        state = start
        for position in range(count):
            result = body(position, *state)
            state = result if isinstance(result, tuple) else () if result is None else (result,)
            if again is not None and position % unroll == unroll - 1 and not again(*state).raw.any():
                break
        return state[0] if len(state) == 1 else state

    def nearest_point(self, table: Table, entry: Int, errors: list[list[Float]]) -> Int:
        """All near points of a lane at once; the loop of the base class is compared with this in a test."""
        assert isinstance(table, NumpyTable)
        data = table.data
        by_level = np.stack([[level.raw for level in element] for element in errors])
        bits, found = (2 if by_level.shape[1] == 3 else 3), entry.raw.copy()
        for lane in np.flatnonzero(found < 0):
            start = -found[lane]
            points = data[start + 1 : start + 1 + data[start]]
            total = np.zeros(points.size, np.float32)
            for element, levels in enumerate(by_level[:, :, lane]):
                total = total + levels[points >> (bits * element) & ((1 << bits) - 1)]
            found[lane] = points[np.argmin(total)]
        return Int(self, found)

    def counter(self, position: int) -> Int:
        return self.i32(position)

    def float_constant(self, value: float) -> Any:
        return np.full(self.lanes, value, np.float32)

    def int_constant(self, value: int) -> Any:
        return np.full(self.lanes, value, np.int32)

    def mask_constant(self, value: bool) -> Any:
        return np.full(self.lanes, value)

    def float_op(self, name: str, left: Any, right: Any) -> Any:
        return _FLOAT[name](left, right)

    def int_op(self, name: str, left: Any, right: Any) -> Any:
        if name == "lshr":
            return (left.view(np.uint32) >> right.view(np.uint32)).view(np.int32)
        return _INT[name](left, right)

    def mask_op(self, name: str, left: Any, right: Any) -> Any:
        return _INT[name](left, right)

    def float_compare(self, name: str, left: Any, right: Any) -> Any:
        return _COMPARE[name](left, right)

    def int_compare(self, name: str, left: Any, right: Any) -> Any:
        return _COMPARE[name](left, right)

    def select(self, mask: Any, yes: Any, no: Any) -> Any:
        return np.where(mask, yes, no)

    def sqrt(self, value: Any) -> Any:
        return np.sqrt(value)

    def float_bits(self, value: Any) -> Any:
        return value.view(np.int32)

    def bits_float(self, value: Any) -> Any:
        return value.view(np.float32)

    def truncate(self, value: Any) -> Any:
        return value.astype(np.int32)

    def to_float(self, value: Any) -> Any:
        return value.astype(np.float32)
