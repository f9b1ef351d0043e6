"""What every compiled kernel must make of one known input before it is used.

The digests are those of ggml's own output (llama.cpp b11434), so that a compiler that gets a kernel wrong on some
processor is found out in a millisecond, without the reference and its slow start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

N_BLOCKS = 40
"""Two full groups of lanes and a part of one."""
BLOCKS_PER_ROW = 5
Quantizer = Callable[[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32] | None], None]

DIGESTS = {
    "q4_0": "c0c55b996364cca2",
    "q4_0_weighted": "f2b004591bc57b1e",
    "q4_1": "08b83b8cbb32bf43",
    "q4_1_weighted": "15bb4f758411b0f3",
    "q5_0": "fef522de49ac35b1",
    "q5_0_weighted": "04380aaa228eecc9",
    "q5_1": "a2d75184227c394b",
    "q5_1_weighted": "eaaf8cac6adf8a3e",
    "q8_0": "38cb1f5e43c1ec44",
    "q2_k": "052f0bfecf23ea35",
    "q2_k_weighted": "17dde668b516ceb0",
    "q3_k": "8aae38c3a47c9523",
    "q3_k_weighted": "3b2e7e03e8583e4f",
    "q4_k": "643821d3e1a47209",
    "q4_k_weighted": "7973248489ec42c9",
    "q5_k": "e662be344bf0a37f",
    "q5_k_weighted": "0e9763fb42ee2f51",
    "q6_k": "ee15a5fdd023cfc3",
    "q6_k_weighted": "0c3fda8ab2918578",
    "iq4_nl": "2cfe238a7fb9647c",
    "iq4_nl_weighted": "8b9aa9b5b246a54b",
    "iq4_xs": "57ab7b07859ff864",
    "iq4_xs_weighted": "7ba584d562b9c745",
    "iq3_xxs": "e2d2d9dbfd0da304",
    "iq3_xxs_weighted": "95080395beb3a1ad",
    "iq3_s": "bfa760eae2e187dc",
    "iq3_s_weighted": "57fd6237303a56a9",
    "iq2_xxs_weighted": "5394c9b4ee59979f",
    "iq2_xs_weighted": "327d1f7095154765",
    "iq2_s": "72a1eb7aecf8803d",
    "iq2_s_weighted": "c924314b88d2c6f8",
    "iq1_s_weighted": "44b274b094508446",
    "iq1_m": "2d6878e2b9f19a39",
    "iq1_m_weighted": "aa9b27cab45db0fb",
    "mxfp4": "fe33287062d5ba70",
    "tq1_0": "c605c150854230a1",
    "tq2_0": "d90e3557516204f4",
    "q2_0": "a82de7c69f0a6ed9",
    "q1_0": "bb1ec2de30824846",
}
"""First 16 hexadecimal digits of the SHA-256 of a kernel's output, by the kernel's name."""


def sample(length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of blocks of ``length`` numbers, of many magnitudes, and weights. Exact arithmetic: the same everywhere."""
    position = np.arange(N_BLOCKS * length, dtype=np.int64)
    scattered = (position * 2654435761 + 12345) % (1 << 32)
    signed = (scattered >> 8) - (1 << 23)
    exponents = (position // 64 * 7) % 15 - 34
    numbers = np.ldexp(signed.astype(np.float64) * (scattered % 251), exponents)
    weights = ((position[: BLOCKS_PER_ROW * length] * 40503) % 65537).astype(np.float32) / np.float32(65536)
    return numbers.astype(np.float32).reshape(-1, BLOCKS_PER_ROW * length), weights


def digest_of(quantize: Quantizer, length: int, size_bytes: int, *, weighted: bool) -> str:
    """Digest of what a kernel makes of the sample."""
    rows, weights = sample(length)
    out = np.empty((rows.shape[0], BLOCKS_PER_ROW * size_bytes), np.uint8)
    quantize(rows, out, weights if weighted else None)
    return hashlib.sha256(out.tobytes()).hexdigest()[:16]
