"""Numbers, times and foreign text as people read them. Pure; the same in English and Chinese."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COUNT_SCALES = ((1e3, "K"), (1e6, "M"), (1e9, "B"))
_UNITS = ("KB", "MB", "GB", "TB", "PB")


def clean(text: object) -> str:
    """Foreign text made safe for a terminal: control characters and direction overrides become visible escapes.

    Line breaks and tabs stay; see :func:`one_line`.
    """
    return _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text).replace("\r\n", "\n"))


def one_line(text: object) -> str:
    """As :func:`clean`, with line breaks and tabs as blanks."""
    return re.sub(r"[\n\t]+", " ", clean(text))


def format_size(size_bytes: float) -> str:
    """Bytes in decimal units: ``999 bytes``, ``1.5 KB``, ``31.2 GB``."""
    if abs(size_bytes) < 1000:
        return f"{size_bytes:.0f} byte{'' if round(size_bytes) == 1 else 's'}"
    value = float(size_bytes)
    for unit in _UNITS:
        value /= 1000
        if abs(value) < 999.95 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """A span of time in at most two units: ``0.4 s``, ``42 s``, ``3:07``, ``2:05:09``, ``3 d 4 h``."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{hours // 24} d {hours % 24} h"


def format_amount(value: float, unit: str) -> str:
    """An amount with its unit: ``1.5 GB`` for bytes, ``1,234 tensors`` or ``1.2 M weights`` for what is counted."""
    return format_size(value) if unit == "bytes" else f"{format_count(value)} {one_line(unit)}"


def format_count(value: float) -> str:
    """A number of things: ``1,234``, and from a hundred thousand on ``137.5 K``, ``11.1 M``, ``1.2 B``."""
    if abs(value) < 99_999.5:
        return f"{value:,.0f}"
    size, letter = next((pair for pair in _COUNT_SCALES if abs(value) < 999.95 * pair[0]), _COUNT_SCALES[-1])
    return f"{value / size:,.1f} {letter}"


def format_progress(done: float, total: float, unit: str) -> str:
    """How much of how much: ``1.2 of 2.0 GB``, ``120 of 272 tensors``."""
    if unit == "bytes":
        part, whole, ending = format_size(done), format_size(total), ""
    else:
        part, whole, ending = format_count(done), format_count(total), f" {one_line(unit)}"
    number, _, scale = part.partition(" ")
    if done == 0 or scale == whole.partition(" ")[2]:
        part = number
    return f"{part} of {whole}{ending}"


def format_rate(rate: float, unit: str) -> str:
    """Units a second: ``410.0 MB/s``, ``12 tensors/s``; of slow ones a minute: ``1.5 files/min``."""
    if unit == "bytes":
        return f"{format_size(rate)}/s"
    if rate < 0.1:
        return f"{rate * 60:.1f} {one_line(unit)}/min"
    return f"{rate:,.1f} {one_line(unit)}/s" if rate < 10 else f"{format_count(rate)} {one_line(unit)}/s"


def format_time(when: datetime, now: datetime | None = None) -> str:
    """A time in the local zone: ``14:03:22`` on the same day, else ``2025-11-23 14:03``."""
    local = when.astimezone()
    today = (now or datetime.now(UTC)).astimezone()
    return local.strftime("%H:%M:%S") if local.date() == today.date() else local.strftime("%Y-%m-%d %H:%M")


def format_age(when: datetime, now: datetime | None = None) -> str:
    """How long ago: ``12 s``, ``5 min``, ``3 h``, ``9 d``."""
    seconds = max(0.0, ((now or datetime.now(UTC)) - when).total_seconds())
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds // 86400)} d"


def format_score(value: float | None) -> str:
    """An evaluation score in four significant digits; a dash for none."""
    return "-" if value is None else f"{value:.4g}"


def format_switch(on: bool) -> str:
    """``on`` or ``off``."""
    return "on" if on else "off"
