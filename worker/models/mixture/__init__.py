"""Mixtures: which ggml type each tensor of a model gets for a quant type, and how large the file becomes.

Reading order: :mod:`worker.models.mixture.model` (what the decision needs to know of a model),
:mod:`worker.models.mixture.names` (tensors sorted into categories), :mod:`worker.models.mixture.tables` (the rules, as
data), :mod:`worker.models.mixture.policy` (walks them), :mod:`worker.models.mixture.plan` (the output file's header and
offsets), :mod:`worker.models.mixture.sizes` (sizes before work).
"""
