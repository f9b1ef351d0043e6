"""The small language in which every kernel is written once.

A kernel is a Python function that computes *one* block. Its variables are ``Float``, ``Int`` and ``Mask`` values; a
``Machine`` gives them meaning. The one in ``lanes_llvm`` traces the function once into LLVM code in which every value
is a vector of 16 lanes, one block per lane. ggml's routines are scalar and blocks are independent, so each lane goes
through exactly the float operations that ggml performs, in the same order, and the bytes are the same. (Tests have a
machine that runs kernels directly, with one NumPy array element per block.)

Why not Numba: there, whether loops over lanes become vectors is up to the optimiser, its integers widen to 64 bits,
and a kernel takes seconds to compile. Vectors that are spelled out compile in a quarter of a second, by the same LLVM
(``llvmlite`` is Numba's), and came out more than twice as fast as loops over 128 lanes.

Branches become :func:`select`; loops become ``Machine.fold``. All floats are float32: Python numbers that meet a
``Float`` are rounded to float32 first, like C's ``f`` suffix. There is no fused multiply-add and no reordering.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

Raw = Any
"""What a machine keeps of a value: a NumPy array, or an LLVM value."""
Index = Any
"""A position known while compiling (``int``), or one that a running loop counts (supports ``+`` and ``*``)."""


class LaneArithmetic(ABC):
    """What a machine does with the values of its lanes. Kernels use :class:`Value`, which calls these methods."""

    def f32(self, value: float) -> Float:
        """The same float in every lane."""
        return Float(self, self.float_constant(value))

    def i32(self, value: int) -> Int:
        """The same integer in every lane."""
        return Int(self, self.int_constant(value))

    @abstractmethod
    def float_constant(self, value: float) -> Raw:
        """The same float32 in every lane."""

    @abstractmethod
    def int_constant(self, value: int) -> Raw:
        """The same int32 in every lane."""

    @abstractmethod
    def mask_constant(self, value: bool) -> Raw:
        """The same condition in every lane."""

    @abstractmethod
    def float_op(self, name: str, left: Raw, right: Raw) -> Raw:
        """``add``, ``sub``, ``mul`` or ``div`` of float32, each rounded by itself."""

    @abstractmethod
    def int_op(self, name: str, left: Raw, right: Raw) -> Raw:
        """``add``, ``sub``, ``mul``, ``and``, ``or``, ``xor``, ``shl`` or ``lshr`` of int32; arithmetic wraps."""

    @abstractmethod
    def mask_op(self, name: str, left: Raw, right: Raw) -> Raw:
        """``and``, ``or`` or ``xor`` of conditions."""

    @abstractmethod
    def float_compare(self, name: str, left: Raw, right: Raw) -> Raw:
        """A C comparison of float32: false for NaN, but ``!=`` is true."""

    @abstractmethod
    def int_compare(self, name: str, left: Raw, right: Raw) -> Raw:
        """A C comparison of signed int32."""

    @abstractmethod
    def select(self, mask: Raw, yes: Raw, no: Raw) -> Raw:
        """Per lane ``yes`` where the mask holds, else ``no``."""

    @abstractmethod
    def sqrt(self, value: Raw) -> Raw:
        """Correctly rounded square root of float32."""

    @abstractmethod
    def float_bits(self, value: Raw) -> Raw:
        """The bits of float32 as int32."""

    @abstractmethod
    def bits_float(self, value: Raw) -> Raw:
        """The bits of int32 as float32."""

    @abstractmethod
    def truncate(self, value: Raw) -> Raw:
        """float32 within +-2**31 to int32, towards zero."""

    @abstractmethod
    def to_float(self, value: Raw) -> Raw:
        """int32 to the nearest float32."""


class Value:
    """A quantity that each lane has its own copy of."""

    __slots__ = ("machine", "raw")

    def __init__(self, machine: LaneArithmetic, raw: Raw) -> None:
        self.machine = machine
        self.raw = raw


class Mask(Value):
    """A condition per lane."""

    __slots__ = ()

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.machine, self.machine.mask_op("and", self.raw, other.raw))

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.machine, self.machine.mask_op("or", self.raw, other.raw))

    def __invert__(self) -> Mask:
        return Mask(self.machine, self.machine.mask_op("xor", self.raw, self.machine.mask_constant(True)))


class Float(Value):
    """A float32 per lane. Comparisons are false where a NaN takes part, except ``!=``, as in C."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def _raw(self, other: Float | float) -> Raw:
        return other.raw if isinstance(other, Float) else self.machine.float_constant(other)

    def _op(self, name: str, left: Raw, right: Raw) -> Float:
        return Float(self.machine, self.machine.float_op(name, left, right))

    def _compare(self, name: str, other: Float | float) -> Mask:
        return Mask(self.machine, self.machine.float_compare(name, self.raw, self._raw(other)))

    def __add__(self, other: Float | float) -> Float:
        return self._op("add", self.raw, self._raw(other))

    def __radd__(self, other: float) -> Float:
        return self._op("add", self._raw(other), self.raw)

    def __sub__(self, other: Float | float) -> Float:
        return self._op("sub", self.raw, self._raw(other))

    def __rsub__(self, other: float) -> Float:
        return self._op("sub", self._raw(other), self.raw)

    def __mul__(self, other: Float | float) -> Float:
        return self._op("mul", self.raw, self._raw(other))

    def __rmul__(self, other: float) -> Float:
        return self._op("mul", self._raw(other), self.raw)

    def __truediv__(self, other: Float | float) -> Float:
        return self._op("div", self.raw, self._raw(other))

    def __rtruediv__(self, other: float) -> Float:
        return self._op("div", self._raw(other), self.raw)

    def __neg__(self) -> Float:
        return (self.bits() ^ -0x80000000).as_float()

    def __abs__(self) -> Float:
        return (self.bits() & 0x7FFFFFFF).as_float()

    def __lt__(self, other: Float | float) -> Mask:
        return self._compare("<", other)

    def __le__(self, other: Float | float) -> Mask:
        return self._compare("<=", other)

    def __gt__(self, other: Float | float) -> Mask:
        return self._compare(">", other)

    def __ge__(self, other: Float | float) -> Mask:
        return self._compare(">=", other)

    def __eq__(self, other: Float | float) -> Mask:  # type: ignore[override]
        return self._compare("==", other)

    def __ne__(self, other: Float | float) -> Mask:  # type: ignore[override]
        return self._compare("!=", other)

    def sqrt(self) -> Float:
        """Correctly rounded square root."""
        return Float(self.machine, self.machine.sqrt(self.raw))

    def bits(self) -> Int:
        """The same 32 bits as an integer."""
        return Int(self.machine, self.machine.float_bits(self.raw))

    def truncated(self) -> Int:
        """Towards zero, as a C cast from float to int; 0 outside of +-2**31 and for NaN."""
        inside = abs(self) < 2147483648.0
        return Int(self.machine, self.machine.truncate(select(inside, self, 0.0).raw))


class Int(Value):
    """An ``int32`` per lane; arithmetic wraps."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def _op(self, name: str, other: Int | int) -> Int:
        raw = other.raw if isinstance(other, Int) else self.machine.int_constant(other)
        return Int(self.machine, self.machine.int_op(name, self.raw, raw))

    def _compare(self, name: str, other: Int | int) -> Mask:
        raw = other.raw if isinstance(other, Int) else self.machine.int_constant(other)
        return Mask(self.machine, self.machine.int_compare(name, self.raw, raw))

    def __add__(self, other: Int | int) -> Int:
        return self._op("add", other)

    def __sub__(self, other: Int | int) -> Int:
        return self._op("sub", other)

    def __mul__(self, other: Int | int) -> Int:
        return self._op("mul", other)

    def __and__(self, other: Int | int) -> Int:
        return self._op("and", other)

    def __or__(self, other: Int | int) -> Int:
        return self._op("or", other)

    def __xor__(self, other: Int | int) -> Int:
        return self._op("xor", other)

    def __lshift__(self, other: Int | int) -> Int:
        return self._op("shl", other)

    def __rshift__(self, other: Int | int) -> Int:
        """Logical: zeros come in from the left."""
        return self._op("lshr", other)

    def __lt__(self, other: Int | int) -> Mask:
        return self._compare("<", other)

    def __gt__(self, other: Int | int) -> Mask:
        return self._compare(">", other)

    def __eq__(self, other: Int | int) -> Mask:  # type: ignore[override]
        return self._compare("==", other)

    def as_float(self) -> Float:
        """The same 32 bits as a float32."""
        return Float(self.machine, self.machine.bits_float(self.raw))

    def to_float(self) -> Float:
        """The nearest float32."""
        return Float(self.machine, self.machine.to_float(self.raw))


Choice = TypeVar("Choice", Float, Int)


def select(mask: Mask, yes: Choice, no: Choice | float) -> Choice:
    """Per lane ``yes`` where the mask holds, else ``no``. Both are computed."""
    machine = mask.machine
    if not isinstance(no, Value):
        constant = machine.float_constant(no) if isinstance(yes, Float) else machine.int_constant(int(no))
        no = type(yes)(machine, constant)
    return type(yes)(machine, machine.select(mask.raw, yes.raw, no.raw))


Element = TypeVar("Element", bound=Value)


class Array(ABC, Generic[Element]):
    """Floats or integers that a kernel addresses by position; every lane has its own."""

    @abstractmethod
    def __getitem__(self, position: Index) -> Element: ...

    @abstractmethod
    def __setitem__(self, position: Index, value: Element) -> None: ...

    def part(self, start: Index) -> Part[Element]:
        """The array from ``start`` on."""
        return Part(self, start)


class Scratch(Array[Element]):
    """Space for a kernel's own use; its contents are undefined at first."""

    @abstractmethod
    def scatter(self, position: Int, value: Element) -> None:
        """Store where each lane wants it."""


class Table(ABC):
    """Read-only integers, the same for all lanes."""

    @abstractmethod
    def __getitem__(self, position: Int) -> Int: ...


class Part(Array[Element]):
    """An array seen from a later start."""

    def __init__(self, whole: Array[Element], start: Index) -> None:
        self._whole, self._start = whole, start

    def __getitem__(self, position: Index) -> Element:
        return self._whole[self._start + position]

    def __setitem__(self, position: Index, value: Element) -> None:
        self._whole[self._start + position] = value
