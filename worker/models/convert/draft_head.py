"""A model's prediction layers (MTP, NextN) left out, or taken from the model that it was trained from.

transformers saves none of them: it has no code that runs them. What full training leaves behind has lost its draft
head, and the base model still has it, trained on what the same layers put out. Headers only; the tensors are read when
the file is written. Next: ``plan``, which counts what is in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.checkpoint import BaseModel
from worker.models.convert.nextn import announced_layers, missing_layers, prediction_tensors
from worker.models.convert.vocabulary import embedding_rows

_DIMENSION = re.compile(r".*(hidden_size|intermediate_size|head_dim|_rank|_heads|_groups|_layers|_experts)|model_type")
"""Keys of ``config.json`` in which a model has to agree with the one whose layers it gets."""

_OF_THE_VOCABULARY = re.compile(r"(^|\.)(embed_tokens|shared_head\.(head|output))\.weight$")


def has_whole_head(model: BaseModel) -> bool:
    """Whether a model has prediction layers, and all that its config announces."""
    names = prediction_tensors(model.text_config, model.tensors)
    return bool(names) and not missing_layers(model.text_config, model.tensors)


def lacks_announced(model: BaseModel) -> bool:
    """Whether the config announces prediction layers that the weights lack, all or some of them."""
    return missing_layers(model.text_config, model.tensors) > 0


def without_draft_head(model: BaseModel) -> BaseModel:
    """The model as upstream's ``--no-mtp`` takes it: its prediction layers stay where they are and go into no file."""
    return replace(model, unconverted=model.unconverted | prediction_tensors(model.text_config, model.tensors))


def with_draft_head_of(model: BaseModel, donor: BaseModel) -> BaseModel:
    """The model with the prediction layers that it lacks, and what its config has to say of them.

    Args:
        model: A model without them, or with some of those that its config announces; its weights plain.
        donor: The model that it was trained from; its weights plain.

    Raises:
        PackagingError: ``draft_head_invalid`` where the other model lacks them as well, or has other dimensions, a
            vocabulary of another size included, where the layers have rows for it.
    """
    own, theirs = model.text_config, donor.text_config
    names = prediction_tensors(theirs, donor.tensors) - set(model.tensors)
    if not names or not has_whole_head(donor):
        raise _refused(
            f"neither {model.directory.name} nor its base model {donor.directory} has all of its prediction layers",
            base_model=str(donor.directory),
        )
    for key, value in sorted(_dimensions(theirs).items()):
        if key in own and own[key] != value:
            raise _refused(
                f"{key} is {own[key]} in {model.directory.name} and {value} in the base model {donor.directory}",
                base_model=str(donor.directory),
                key=key,
                model_has=own[key],
                base_has=value,
            )
    rows, donor_rows = embedding_rows(model), embedding_rows(donor)
    tied_to_words = next((name for name in sorted(names) if _OF_THE_VOCABULARY.search(name)), None)
    if tied_to_words is not None and rows != donor_rows:
        raise _refused(
            f"{tied_to_words} of the base model {donor.directory} has {donor_rows} rows, "
            f"the vocabulary of {model.directory.name} has {rows}",
            base_model=str(donor.directory),
            tensor=tied_to_words,
            model_has=rows,
            base_has=donor_rows,
        )
    grafted = model.with_tensors_of(donor, names, _announcing(model, theirs))
    if lacks_announced(grafted):
        raise _refused(
            f"config.json of {model.directory.name} announces more prediction layers than the base model "
            f"{donor.directory} has",
            base_model=str(donor.directory),
        )
    return grafted


def _announcing(model: BaseModel, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the donor's announcement, and per-layer lists as long as the donor's."""
    own = model.text_config
    layers = own.get("num_hidden_layers")
    changes: dict[str, Any] = dict(announced_layers(theirs))
    for key, value in theirs.items():
        mine = own.get(key)
        # lists with a value per layer go on over the prediction layers (Step 3.5: layer_types, swiglu_limits)
        if isinstance(value, list) and isinstance(mine, list) and len(mine) == layers and len(value) > len(mine):
            changes[key] = [*mine, *value[len(mine) :]]
    if own is model.config:
        return {**model.config, **changes}
    return {**model.config, "text_config": {**own, **changes}}


def _dimensions(config: Mapping[str, Any]) -> dict[str, Any]:
    announced = {"num_nextn_predict_layers", "mtp_num_hidden_layers"}
    return {
        key: value
        for key, value in config.items()
        if key not in announced and isinstance(value, int | str) and _DIMENSION.fullmatch(key)
    }


def _refused(fact: str, **fields: Any) -> PackagingError:
    return PackagingError(ErrorCode.DRAFT_HEAD_INVALID, fact, fields={"field": "draft_head", **fields})
