"""How good a packaged file is: every file against the model it was made from, over the same text, in one pass.

Reading order: :mod:`worker.models.evaluate.sequences` (text to tokens, with what is scored),
:mod:`worker.models.evaluate.variants` (the models compared: reference, base, files),
:mod:`worker.models.evaluate.inverse` (a file's tensors back in the place of the model's parameters),
:mod:`worker.models.evaluate.side_by_side` (all of them through the layers side by side),
:mod:`worker.models.evaluate.scores` (what is kept per token) and :mod:`worker.models.evaluate.figures` (means, errors,
retention).
"""
