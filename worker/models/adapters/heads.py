"""A classifier's head that training brought: the base is a plain encoder, and the merged model is one of another class.

PEFT attaches an adapter of task type ``SEQ_CLS`` to a model with a fresh head and saves the trained one whole
(``classifier``, ``score``). Where the converter takes the class that was trained, the head's tensors are added to the
merged model and ``config.json`` names that class; where it does not, ``misfits`` refuses the head by name.
"""

from __future__ import annotations

from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.draft import Draft
from worker.models.adapters.keys import AdapterKey
from worker.models.adapters.module_tree import CLASSIFIES
from worker.models.adapters.names import text_embedding
from worker.models.adapters.places import Place
from worker.models.adapters.updates import ReplaceUpdate


def plan_head(draft: Draft) -> dict[str, Any]:
    """Add the tensors of a head that the base lacks.

    Args:
        draft: Every other tensor assigned; the head's are taken out of ``unmatched``.

    Returns:
        Changes of the config; none where there is no head to add.

    Raises:
        PackagingError: ``adapter_mismatch`` where a part of the trained class is in neither base nor adapter.
    """
    named = {f"{key.module}{key.part}": key for key in draft.unmatched if key.part.startswith(".")}
    if draft.adapter.config.get("task_type") != CLASSIFIES or not named or len(named) < len(draft.unmatched):
        return {}  # before transformers is asked, whose import alone takes seconds
    tree, source = draft.locator.tree, text_embedding(draft.base)
    if (
        tree is None
        or source is None
        or tree.class_name not in draft.classes
        or not named.keys() <= tree.parameters.keys()
    ):
        return {}
    absent = [name for name in tree.parameters if name not in tree.places and name not in named]
    if absent:
        raise PackagingError(
            ErrorCode.ADAPTER_MISMATCH,
            f"{draft.adapter.directory} trained a {tree.class_name}, and {absent[0]} of it is in neither the adapter "
            f"nor {draft.base.directory}",
            remedy="Its values were drawn at random when training began and were not saved. Train again with the "
            "module in `modules_to_save`, or give the whole trained model.",
            fields={"missing": absent[:20], "class": tree.class_name},
        )
    for name, key in named.items():
        draft.add(Place(name, source), "replace", ReplaceUpdate(draft.read(key).contiguous()))
    draft.unmatched.clear()
    outputs = [named[name] for name in tree.parameters if name in named and name.endswith(".weight")]
    labels = _labels(draft, outputs[-1])
    draft.notes.append(f"the head {', '.join(named)} is the adapter's: the merged model is a {tree.class_name}")
    return {
        "architectures": [tree.class_name],
        "id2label": labels,
        "label2id": {label: int(number) for number, label in labels.items()},
    }


def _labels(draft: Draft, output: AdapterKey) -> dict[str, str]:
    """Number -> label: by a config beside the adapter, else the base's, else as transformers names them.

    Args:
        draft: The draft.
        output: The head's last matrix, (labels, hidden).
    """
    count = draft.shape(output)[0]
    for config in (draft.adapter.model_config(), draft.base.config):
        labels = config.get("id2label")
        numbers = {str(number) for number in range(count)}
        if isinstance(labels, dict) and labels.keys() == numbers and all(isinstance(x, str) for x in labels.values()):
            return dict(labels)
    return {str(number): f"LABEL_{number}" for number in range(count)}
