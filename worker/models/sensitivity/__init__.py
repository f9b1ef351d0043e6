"""Sensitivities: what each weight matrix means for the model's predictions, per input channel and per output row.

``sums`` and ``gguf_form`` need no torch; ``compute`` runs the model forward and backward.
"""
