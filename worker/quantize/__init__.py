"""Quantization: one pass over an unquantized GGUF file makes the files of all quant types asked for.

Reading order: :mod:`worker.quantize.engine` (the pass), :mod:`worker.quantize.source` (what is read),
:mod:`worker.quantize.prepare` (plans and refusals before any work), :mod:`worker.quantize.slabs` (the unit of work and
its arithmetic), :mod:`worker.quantize.output_file` (a file being made: partial, journal, digest, rename).
:mod:`worker.quantize.local` is the local command, :mod:`worker.quantize.split` cuts a file into shards.
"""
