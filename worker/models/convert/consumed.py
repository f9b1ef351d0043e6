"""What training changed must be in the file: every tensor that the overlay touches is one that the converter takes.

Some converters drop tensors without a word: Gemma's have no head of its own, so a head that training pulled apart from
the embedding would be lost, and the file would answer like another model. Parts for pictures and sound are left out of
every text model on purpose; what training changed in them is told, not refused. An adapter on a layer that the training
never used (an encoder's pooler) is zero and loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.names import is_head
from worker.models.convert.weights import MergedWeights

_OTHER_SENSES = re.compile(
    r"(^|\.)\w*(vision|visual|image|audio|speech|sound|video|multi_modal|multimodal|mm_projector|connector|mlp1|mlp_AR|vit_large_projector)\w*\."
)
_NAMED = 3


def check_consumed(
    weights: MergedWeights, left_out: Iterable[str], architecture: str, *, beside_projector: bool = False
) -> tuple[str, ...]:
    """Refuse a conversion that would lose what an adapter trained.

    Args:
        weights: Base model and overlay.
        left_out: Weights that no tensor of the file is made of, nor of the projector beside it where one is made.
        architecture: For the message.
        beside_projector: Whether one is made.

    Returns:
        Sentences worth telling the user: trained parts for pictures and sound that are in no file, and trained
        prediction layers that the job leaves out.

    Raises:
        PackagingError: ``adapter_unsupported`` naming the tensors.
    """
    unconverted = sorted(name for name in weights.changed() & weights.base.unconverted if weights.alters(name))
    lost = sorted(weights.changed() & set(left_out))
    if not any(key.endswith("tie_word_embeddings") for key in weights.config_changes()):
        lost = [name for name in lost if not is_head(name)]  # still tied: the embedding says the same
    senses = [name for name in lost if is_of_another_sense(name)]
    others = [name for name in lost if name not in senses and weights.alters(name)]
    if others:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{architecture} files have no place for {listed(others)}, which the adapter changes",
            fields={"tensors": others[:100], "architecture": architecture},
        )
    notes = [f"what the adapter changes in prediction layers is left out with them: {listed(unconverted)}"]
    if senses:
        where = "in neither the text model nor its projector" if beside_projector else "not in the text model"
        notes.append(f"trained parts for pictures or sound are {where}: {listed(senses)}")
    return tuple(notes if unconverted else notes[1:])


def is_of_another_sense(name: str) -> bool:
    """Whether a weight belongs to a part for pictures or sound, by its name."""
    return _OTHER_SENSES.search(name) is not None


def listed(names: list[str]) -> str:
    """The first few of them, and how many more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
