"""Sensitivities as they are gathered and stored, and what they predict.

Near the optimum the mean KL divergence (nats a token) that a change ``d`` of a weight matrix causes is half its Fisher
information times the square of the change. With the information of entry (o, i) taken as ``G_o * A_i``::

    KLD = 0.5 * sum_e sum_o G[e, o] * sum_i A[e, i] * d[e, o, i] ** 2

    A = in_sum2 / counts      mean squared input of channel i (of the tokens that reach expert e)
    G = out_grad2             squared gradients of the log-likelihood at output row o, summed over the tokens that reach
                              expert e and divided by the tokens of the text

An embedding's row is a token, and its error the same wherever the token stands: there ``G`` is the squared gradient at
the row, gathered over its places in a sequence, and ``A`` the part of all that falls on channel i. A head's ``G`` is
the mean of ``p (1 - p)``, the expectation of the squared gradient. (The product form is that of K-FAC with diagonal
factors, Martens and Grosse 2015, arXiv 1503.05671.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.models.imatrix.sums import ImatrixSums, TensorSums
from worker.models.mixture.names import OUTPUT_NAME, TOKEN_EMBEDDING_NAMES


@dataclass(frozen=True)
class TensorSensitivity:
    """Sensitivity of one GGUF tensor.

    Attributes:
        inputs: Sums of squared inputs and counts, ``m`` matrices; of an embedding, the columns' parts.
        out_grad2: float32 ``(m, rows)``; None where only the forward pass could be run.
    """

    inputs: TensorSums
    out_grad2: NDArray[np.float32] | None

    def mean_inputs(self) -> NDArray[np.float64]:
        """``A``, float64 ``(m, row length)``; ones for an expert that no token reached."""
        counts = self.inputs.counts.astype(np.float64)[:, np.newaxis]
        means = np.ones(self.inputs.in_sum2.shape)
        np.divide(self.inputs.in_sum2, counts, out=means, where=counts > 0)
        return means


@dataclass(frozen=True)
class Sensitivity:
    """The contents of a sensitivity file.

    Attributes:
        dataset: Name of the text.
        text_sha256: Digest of the token ids that were run.
        tokens: How many.
        chunk_tokens: Tokens in a chunk.
        model: Fingerprint of the base model's headers.
        seed: Of the labels drawn.
        matrix_chunks: Chunks of the text that the inputs were gathered on, and tokens in each.
        entries: GGUF name -> sensitivity. ``output.weight`` stands for the head also where it is tied to the embedding.
    """

    dataset: str
    text_sha256: str
    tokens: int
    chunk_tokens: int
    model: str
    seed: int
    entries: Mapping[str, TensorSensitivity]
    matrix_chunks: tuple[int, int] = (0, 0)

    @property
    def has_gradients(self) -> bool:
        """Whether the backward pass was run."""
        return any(entry.out_grad2 is not None for entry in self.entries.values())

    def matrix(self) -> ImatrixSums:
        """The importance matrix in it: as llama-imatrix has it, without plain sums, embedding and head."""
        entries = {
            name: entry.inputs
            for name, entry in self.entries.items()
            if name != OUTPUT_NAME and name not in TOKEN_EMBEDDING_NAMES
        }
        return ImatrixSums((self.dataset,), *self.matrix_chunks, entries)
