"""Fit: the mixture with the least predicted divergence at a size, and the choice between such mixtures by measurement.

``prices`` says what every tensor costs and loses in every type.
"""
