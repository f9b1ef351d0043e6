"""How good a packaged file is: every file against the model it was made from, over the same text, in one pass.

Reading order: :mod:`worker.evaluate.sequences` (text to tokens, with what is scored), :mod:`worker.evaluate.variants`
(the models compared: reference, base, files), :mod:`worker.evaluate.inverse` (a file's tensors back in the place of the
model's parameters), :mod:`worker.evaluate.pass_` (all of them through the layers side by side),
:mod:`worker.evaluate.scores` (what is kept per token) and :mod:`worker.evaluate.figures` (means, errors, retention).
"""
