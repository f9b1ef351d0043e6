"""Text to token sequences, with what of them is scored.

Plain text is cut as ``llama-perplexity`` cuts it: tokenized as a whole, in chunks of consecutive tokens, each begun
with the begin-of-text token where the model wants one; the second half of every chunk is scored, so that every scored
token has at least half a chunk of context. A sample of a data set is one sequence; all of it but the first token is
scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenSequence:
    """Tokens that run through the models together.

    Attributes:
        part: What kind of text it is, e.g. ``code``; figures are given for each part.
        ids: Token ids.
        first_scored: Position of the first token that is scored; all after it are.
    """

    part: str
    ids: tuple[int, ...]
    first_scored: int

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.ids) - self.first_scored


SHORTEST_TAIL = 32
"""Tokens that a shorter chunk at the end of a text must have."""


def cut_text(
    part: str, ids: Sequence[int], begin: int | None, context: int, *, tail: bool = False
) -> list[TokenSequence]:
    """Chunks of a text; what is left over at its end is dropped, or a shorter chunk.

    Args:
        part: Label of the text.
        ids: Ids of the whole text; ``begin`` goes before it, as llama.cpp tokenizes.
        begin: The begin-of-text token, where the model wants one.
        context: Tokens in a chunk.
        tail: Whether the rest is a chunk, of which the second half is scored as well. llama-perplexity drops it.
    """
    whole = [*([begin] if begin is not None else []), *ids]
    chunks = []
    for start in range(0, len(whole), context):
        chunk = whole[start : start + context]
        if len(chunk) < context and not (tail and len(chunk) >= SHORTEST_TAIL):
            break
        if begin is not None:
            chunk[0] = begin
        chunks.append(TokenSequence(part, tuple(chunk), len(chunk) // 2 + 1))
    return chunks


def spread(sequences: Iterable[TokenSequence]) -> list[TokenSequence]:
    """Take turns between the parts, so that the beginning of the list holds something of each."""
    by_part: dict[str, list[TokenSequence]] = {}
    for sequence in sequences:
        by_part.setdefault(sequence.part, []).append(sequence)
    longest = max((len(members) for members in by_part.values()), default=0)
    return [members[turn] for turn in range(longest) for members in by_part.values() if turn < len(members)]


@dataclass(frozen=True)
class Batch:
    """Sequences that go through a layer together, padded on the right, where a causal model does not look.

    Attributes:
        ids: int64 ``(sequences, tokens)``.
        rows: Sequence of each scored prediction, int64 ``(n,)``.
        positions: Position whose output predicts the scored token, int64 ``(n,)``.
        targets: The scored tokens, int64 ``(n,)``.
        parts: Part of each scored token.
    """

    ids: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    parts: tuple[str, ...]


def batches(sequences: Sequence[TokenSequence], tokens: int) -> list[Batch]:
    """Group sequences, in order, to batches of at most ``tokens`` tokens (one sequence at least), padding included."""
    made: list[Batch] = []
    group: list[TokenSequence] = []
    for sequence in sequences:
        longest = max([len(sequence.ids), *(len(member.ids) for member in group)])
        if group and longest * (len(group) + 1) > tokens:
            made.append(_batch(group))
            group = []
        group.append(sequence)
    return [*made, _batch(group)] if group else made


def _batch(group: Sequence[TokenSequence]) -> Batch:
    ids = torch.zeros(len(group), max(len(member.ids) for member in group), dtype=torch.int64)
    rows, positions, targets, parts = [], [], [], []
    for row, member in enumerate(group):
        ids[row, : len(member.ids)] = torch.tensor(member.ids)
        for position in range(max(member.first_scored, 1), len(member.ids)):
            rows.append(row)
            positions.append(position - 1)
            targets.append(member.ids[position])
            parts.append(member.part)
    return Batch(ids, torch.tensor(rows), torch.tensor(positions), torch.tensor(targets), tuple(parts))
