"""Mixtures: which ggml type each tensor of a model gets for a quant type, and how large the file becomes.

Reading order: :mod:`worker.mixture.model` (what the decision needs to know of a model), :mod:`worker.mixture.names`
(tensors sorted into categories), :mod:`worker.mixture.tables` (the rules, as data), :mod:`worker.mixture.policy` (walks
them), :mod:`worker.mixture.plan` (the output file's header and offsets), :mod:`worker.mixture.sizes` (sizes before
work).
"""
