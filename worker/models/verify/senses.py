"""Prove a projector: llama.cpp loads it with its text model, is shown a picture or played a sound, and answers.

Picture and sound are drawn here. What the answer says is for a person to judge; that there is one is the proof.
"""

from __future__ import annotations

import base64
import io
import math
import struct
import wave
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.models.gguf.metadata import get_value
from worker.models.gguf.reader import open_gguf
from worker.models.verify.ask import Question
from worker.models.verify.load import generate

PICTURE_SIDE, SOUND_HZ, SOUND_SECONDS, SAMPLE_RATE = 56, 440, 1, 16_000
CONTEXT_TOKENS = 4096
"""A picture may be cut into many tiles, each of them hundreds of tokens."""
_AMPLITUDE = 9_000
_PROMPTS = {"image_url": "What is in the picture?", "input_audio": "What do you hear?"}


def prove_projector(question: Question, projector: Path) -> str:
    """Ask the pair about everything that the projector takes.

    Args:
        question: The text model, and on how many threads.
        projector: The projector's file.

    Returns:
        What it answered, as the end of a sentence that begins with its name.

    Raises:
        PackagingError: as :func:`~worker.models.verify.load.generate`; ``gguf_invalid``.
    """
    said = []
    for kind, part in _shown(projector):
        pair = replace(
            question,
            prompt=_PROMPTS[kind],
            chat=True,
            context_tokens=CONTEXT_TOKENS,
            projector=str(projector),
            senses=(part,),
        )
        said.append(f"{generate(pair)!r} to {'a picture' if kind == 'image_url' else 'a sound'}")
    return f"answers {' and '.join(said)}" if said else "loads"


def picture() -> bytes:
    """A red disc on a white ground, as PNG."""
    side = PICTURE_SIDE
    rows = (b"\0" + b"".join(_colour(x, y) for x in range(side)) for y in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _colour(x: int, y: int) -> bytes:
    middle = PICTURE_SIDE / 2
    return b"\xe0\x10\x10" if math.hypot(x - middle, y - middle) < PICTURE_SIDE / 3 else b"\xff\xff\xff"


def sound() -> bytes:
    """A steady tone, as WAV: 16 bit, one channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        turn = 2 * math.pi * SOUND_HZ / SAMPLE_RATE
        count = SOUND_SECONDS * SAMPLE_RATE
        out.writeframes(struct.pack(f"<{count}h", *(int(_AMPLITUDE * math.sin(turn * n)) for n in range(count))))
    return file.getvalue()


def _shown(projector: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Kind and part of a chat message, of each sense that the file says it has."""
    with open_gguf(projector) as file:
        sees = get_value(file.metadata, "clip.has_vision_encoder") is True
        hears = get_value(file.metadata, "clip.has_audio_encoder") is True
    if sees:
        url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
        yield "image_url", {"type": "image_url", "image_url": {"url": url}}
    if hears:
        data = base64.b64encode(sound()).decode()
        yield "input_audio", {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
