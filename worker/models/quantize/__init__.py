"""Quantization: one pass over an unquantized GGUF file makes the files of all quant types asked for.

Reading order: :mod:`worker.models.quantize.engine` (the pass), :mod:`worker.models.quantize.source` (what is read),
:mod:`worker.models.quantize.prepare` (plans and refusals before any work), :mod:`worker.models.quantize.slabs` (the
unit of work and its arithmetic), :mod:`worker.models.quantize.output_file` (a file being made: partial, journal,
digest, rename). :mod:`worker.models.quantize.local` is the local command, :mod:`worker.models.quantize.split` cuts a
file into shards.
"""
