"""The base as an adapter was trained on it in 4 bits, made of the plain base: its linear layers rounded and read back.

Which weights: what transformers replaces by 4-bit layers when it loads the model with bitsandbytes, that is every
linear layer but the output head. Experts that are one parameter, routers, embeddings and norms stay as they are, as
they do there. A 4-bit model that somebody uploaded may have kept more layers in 16 bits (Unsloth's dynamic ones do):
then that model itself is the base to give.
"""

from __future__ import annotations

from typing import Literal

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.module_tree import ParameterKind, read_module_tree
from worker.models.adapters.names import is_head
from worker.models.checkpoint.base_model import BaseModel

RoundedAs = Literal["nf4", "nf4_nested"]


def base_as_trained(base: BaseModel, rounded_as: RoundedAs) -> BaseModel:
    """The model with its linear layers as training in 4 bits saw them; each is made when it is read.

    Raises:
        PackagingError: ``request_invalid`` for a base that is in 4 bits already; ``unsupported_architecture`` for one
            whose linear layers nobody knows.
    """
    if base.made_plain_from == "bitsandbytes":
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"base_precision: {base.directory} holds the weights that bitsandbytes rounded; they are not rounded again",
            remedy="Leave base_precision at `stored`.",
            fields={"field": "base_precision"},
        )
    tree = read_module_tree(base)
    if tree is None:
        raise PackagingError(
            ErrorCode.UNSUPPORTED_ARCHITECTURE,
            f"{base.directory}: transformers cannot build this model, so which of its weights are linear layers, and "
            "were rounded in training, is not known",
            remedy="Leave base_precision at `stored`, or give the 4-bit model itself as base_model.",
            fields={"architecture": base.model_type},
        )
    names = [
        name
        for name, entry in base.tensors.items()
        if len(entry.shape) == 2 and tree.kind_of(name) is ParameterKind.LINEAR and not is_head(name)
    ]
    return base.rounded(names, nested=rounded_as == "nf4_nested")
