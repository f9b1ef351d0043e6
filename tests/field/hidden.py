"""What llama.cpp computes of a file and transformers of its model: the mean of the last hidden states.

A wrong order of layers, a missing scale or a permuted row loads and writes text all the same; this sees it. It is a
program of its own, as llama.cpp may abort: ids and a path as JSON on standard input, the vector on standard output.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 40
"""Tokens of the text; longer than the windows of the small models."""
_TIMEOUT_S = 60


class NoVectorError(Exception):
    """Why llama.cpp gives no vector."""


def angle(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """One less the cosine of two vectors."""
    one, other = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def by_llama_cpp(model: Path, ids: Sequence[int]) -> list[float]:
    """The vector by llama.cpp.

    Raises:
        NoVectorError: llama.cpp does not run the file, or has no vectors of such a model.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.field.hidden"],
        input=json.dumps({"model": str(model), "ids": list(ids)}),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_S,
        check=False,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    if done.returncode != 0:
        raise NoVectorError(f"llama.cpp gives no vector: {done.stderr.strip().splitlines()[-1][:200]}")
    vector: list[float] = json.loads(done.stdout)
    return vector


def by_transformers(model: Any, ids: Sequence[int]) -> list[float]:
    """The vector by a model of transformers."""
    import torch

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        text = (model.get_decoder() if hasattr(model, "get_decoder") else None) or model.base_model
        text = model.base_model if isinstance(text, torch.nn.Linear) else text  # so an encoder calls its head
        output = text(input_ids=torch.tensor([list(ids)]), use_cache=False)
        if not hasattr(output, "last_hidden_state"):  # a text model with its head
            output = text.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    states = output.last_hidden_state[0].float()
    mean: list[float] = states.mean(0).tolist()
    return mean


def _main() -> None:
    import xllamacpp

    asked = json.loads(sys.stdin.read())
    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx, params.n_parallel, params.warmup, params.ui = 256, 1, False, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.api_keys = [secrets.token_hex(16)]
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    reply = xllamacpp.Server(params).handle_embeddings({"input": [asked["ids"]]})
    reply = json.loads(reply) if isinstance(reply, str | bytes) else reply
    if "data" not in reply:
        sys.exit(str(reply.get("error", reply))[:200])
    sys.stdout.write(json.dumps(reply["data"][0]["embedding"]))


if __name__ == "__main__":
    _main()
