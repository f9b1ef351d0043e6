"""The doors of a whole language model: its embedding, its layers and its head, each loaded by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.imatrix.lockstep import Door, find_doors
from worker.models.imatrix.model import Skeleton


@dataclass
class ModelDoors:
    """The doors of a model in the order in which text meets them.

    Attributes:
        doors: Embedding, layers, head.
        prefixes: Door name -> beginning of the names of its parameters; a tied head has the embedding's.
    """

    doors: list[Door]
    prefixes: Mapping[str, str]

    @property
    def embedding(self) -> Door:
        """The first one."""
        return self.doors[0]

    @property
    def head(self) -> Door:
        """The last one."""
        return self.doors[-1]


def find_model_doors(skeleton: Skeleton) -> ModelDoors:
    """The doors of a model with a head.

    Raises:
        PackagingError: ``unsupported_architecture`` where the model gives no probabilities of tokens.
    """
    model = skeleton.model
    names = {module: name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head not in names or embedding not in names:
        raise PackagingError(
            ErrorCode.UNSUPPORTED_ARCHITECTURE,
            f"{type(model).__name__} gives no probabilities of tokens, which this work needs",
        )
    layers = [Door(skeleton.prefix + door.name, door.module) for door in find_doors(skeleton.body)]
    ends = [Door(names[embedding], embedding), Door(names[head], head)]
    prefixes = {door.name: f"{door.name}." for door in [*layers, *ends]}
    source = model.all_tied_weights_keys.get(f"{names[head]}.weight")
    if source is not None:
        prefixes[names[head]] = source.rpartition(".")[0] + "."
    return ModelDoors([ends[0], *layers, ends[1]], prefixes)
