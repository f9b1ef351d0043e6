"""How trainers call the directories of their checkpoints.

``checkpoint-900`` (transformers, and all that build on its Trainer), ``epoch_1`` and ``step_900`` (torchtune),
``epoch_0_step_900`` (NeMo Automodel).
"""

from __future__ import annotations

import re

_NAME = re.compile(r"checkpoint-.*|epoch_\d{1,12}(?:_step_\d{1,12})?|step_\d{1,12}")
_NUMBER = re.compile(r"(?:checkpoint-|epoch_|(?:epoch_\d{1,12}_)?step_)(\d{1,12})")


def is_checkpoint_name(name: str) -> bool:
    """Whether a directory of this name is one checkpoint of several of a run."""
    return _NAME.fullmatch(name) is not None


def step_of(name: str) -> int | None:
    """The step that a name says, or the epoch where it says no step; checkpoints of a run come in its order."""
    match = _NUMBER.fullmatch(name)
    return int(match[1]) if match else None
