"""Rounding that every kernel shares: to integers, to levels, to F16 and back, all as ggml does it."""

from __future__ import annotations

from worker.models.kernels.lanes import Float, Int, select


def nearest_int(value: Float) -> Int:
    """``nearest_int`` of ggml: to nearest even.

    Adding 1.5 * 2**23 leaves the rounded number in the lowest bits. Beyond +-2**22 the result wraps, and for NaN it
    is 0, as in ggml: with extreme numbers that decides bytes too.
    """
    return ((value + 12582912.0).bits() & 0x007FFFFF) - 0x00400000


def round_half_away(value: Float) -> Int:
    """``roundf``: the largest number below one half, added before the cut, carries exact halves over and no more."""
    half = ((value.bits() & -0x80000000) | 0x3EFFFFFF).as_float()
    return (value + half).truncated()


def nearest_level(value: Float, low: int, high: int) -> Float:
    """``nearest_int`` limited to ``low .. high``, as a float."""
    bits = (value + 12582912.0).bits() & 0x007FFFFF
    bits = limited(bits, low + 0x00400000, high + 0x00400000)
    return (bits | 0x4B000000).as_float() - 12582912.0


def limited(value: Int, low: int, high: int) -> Int:
    """The value, or the limit that it is beyond."""
    value = select(value < high, value, high)
    return select(value > low, value, low)


def sign_extended(value: Int) -> Int:
    """The low byte as a signed number: what a C cast to ``int8_t`` leaves."""
    return ((value & 255) ^ 128) - 128


def half_bits(value: Float) -> Int:
    """F16 bits of a float32 (``GGML_FP32_TO_FP16``): two scalings put the rounding where the half's last bit is."""
    bits = value.bits()
    base = (abs(value) * 2.0**112) * 2.0**-110
    # twice the bits, without the sign; as they are unsigned, they are compared after a shift
    doubled = bits << 1
    bias = (doubled & -0x01000000) >> 1
    bias = select(bias > 0x38800000, bias, 0x38800000)
    rounded = ((bias + 0x07800000).as_float() + base).bits()
    magnitude = ((rounded >> 13) & 0x7C00) + (rounded & 0x0FFF)
    magnitude = select((doubled >> 1) > 0x7F800000, value.machine.i32(0x7E00), magnitude)
    return magnitude | ((bits >> 16) & 0x8000)


def half_value(half: Int) -> Float:
    """float32 of F16 bits (``GGML_FP16_TO_FP32``)."""
    magnitude = half & 0x7FFF
    normal = ((magnitude << 13) + 0x70000000).as_float() * 2.0**-112
    subnormal = magnitude.to_float() * 2.0**-24
    value = select(magnitude > 0x03FF, normal, subnormal)
    return (value.bits() | ((half & 0x8000) << 16)).as_float()
