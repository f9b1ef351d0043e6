"""Why llama.cpp gave up, out of what it printed."""

from __future__ import annotations

import re

NOT_RUN = "llama_encode must be called first"
"""The server's answer to a model of encoder and decoder, once it is loaded: it never runs the encoder."""
_KEPT = 15
# llama_model_load: error loading model: REASON; where that names the file alone, an error line before it says why
_LOADING = re.compile(r"error loading model: (?!llama_model_loader: failed to load)(?P<reason>.+)")
# ggml_abort: PATH:LINE: GGML_ASSERT(...) failed; the path is that of the machine that built it
_ABORT = re.compile(r"^(?:\S*/)?(?P<reason>[\w.-]+\.(?:c|cc|cpp|cu|h|hpp|m|mm):\d+: .+)$")
# libstdc++, of an exception that nobody caught
_THROWN = re.compile(r"^\s*what\(\):\s+(?P<reason>.+)$")
_ERROR = re.compile(r"\bE (?P<reason>.+)")
# a debugger's, where ggml starts one in spite of GGML_NO_BACKTRACE
_BACKTRACE = re.compile(r"^(?:#\d+ |\[(?:New LWP|Inferior|Thread) |Using host libthread_db|warning: |0x[0-9a-f]+ in )")


def reason_of(stderr: str, code: int) -> str:
    """The loader's own words: what it says of the file, else the assertion that failed, else its first error line.

    Args:
        stderr: Everything that it printed.
        code: Its exit code; a negative one is a signal, which is told where nothing else is said.
    """
    lines = stderr.splitlines()
    for pattern in (_LOADING, _ABORT, _THROWN, _ERROR):
        told = next((match for match in map(pattern.search, lines) if match), None)
        if told is not None:
            return told["reason"].strip()
    return f"llama.cpp ended with signal {-code}" if code < 0 else f"llama.cpp ended with exit code {code}"


def last_lines(stderr: str) -> list[str]:
    """The end of what it printed, without a debugger's backtrace."""
    return [line for line in stderr.splitlines() if not _BACKTRACE.match(line)][-_KEPT:]
