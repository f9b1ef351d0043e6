"""What the console relies on inside h11, with the reason; ``tests/unit/test_foreign.py`` tries it."""

from __future__ import annotations

import h11
from h11._receivebuffer import ReceiveBuffer


class StrictLines(ReceiveBuffer):
    """h11's buffer, which takes a bare line feed for a line's end where other servers do not.

    Two servers in a row that cut a header differently are how one request is smuggled inside another. So are two
    lengths: a body is announced by Content-Length or by Transfer-Encoding (RFC 9112, 6.1 and 2.2).
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """A header's lines, once they are all there.

        Raises:
            h11.LocalProtocolError: a bare line feed, or two lengths; h11 tells it as the other side's mistake.
        """
        before = bytes(self._data)
        lines = super().maybe_extract_lines()
        if lines is None:
            return None
        taken = before[: len(before) - len(self)]
        if taken.count(b"\n") != taken.count(b"\r\n"):
            raise h11.LocalProtocolError("bare line feed")
        names = {bytes(line.partition(b":")[0]).strip().lower() for line in lines[1:]}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise h11.LocalProtocolError("Content-Length with Transfer-Encoding")
        return lines


def take_strict_lines(connection: h11.Connection) -> None:
    """Have a connection that is still empty take its lines strictly; h11 has no setting for it."""
    connection._receive_buffer = StrictLines()
