"""Models that answer nothing: for them loading is the proof."""

from __future__ import annotations

ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "modern-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
     "t5encoder", "gemma-embedding", "llama-embed", "wavtokenizer-dec"}
)  # fmt: skip
"""GGUF architectures that give embeddings and no text."""
