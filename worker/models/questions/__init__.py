"""Questions asked of the trained model and of every file made of it, greedily, so that answers can be compared.

Reading order: :mod:`worker.models.questions.files` (questions in a file), :mod:`worker.models.questions.reference` (the
model in transformers), :mod:`worker.models.questions.packaged` (a file in llama.cpp).
"""
