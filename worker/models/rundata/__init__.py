"""The data that a run was trained on: where its trainer left a note of it, and how it is shared out.

Reading order: :mod:`worker.models.rundata.notes` (files that name data, trainer by trainer),
:mod:`worker.models.rundata.find` (which of what they name can be used here),
:mod:`worker.models.rundata.split` (samples to measure on, and samples to calibrate with; never both).
"""
