"""Importance matrices: their files (no torch), and computing one (torch).

``load`` and ``gguf_form`` read and write, ``validate`` compares with a model, ``calibration`` holds the text;
``compute`` runs the model.
"""
