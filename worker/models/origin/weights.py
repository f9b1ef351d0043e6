"""Weights along the way: PEFT's merge against ours, and ours against what the unquantized file holds, bit by bit.

One layer of ours at a time. A vector that the converter changes (``weight + 1``) is compared after the merge only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from api_client.contract.quality import OriginStep, StepWord
from worker.models.evaluate.doors import find_model_doors
from worker.models.evaluate.inverse import map_block
from worker.models.evaluate.variants import Destination, QuantizedFile
from worker.models.gguf.types import GGMLType
from worker.models.imatrix.model import Skeleton
from worker.models.imatrix.names import Converter
from worker.models.origin.steps import differs, same

_STORED_AS = {GGMLType.F32: torch.float32, GGMLType.F16: torch.float16, GGMLType.BF16: torch.bfloat16}


class WeightWay:
    """Compares the merged model's weights with the witness's and with a file's.

    Args:
        skeleton: Loads the merged weights.
        converter: Upstream's, for the file's layout.
    """

    def __init__(self, skeleton: Skeleton, converter: Converter) -> None:
        self._skeleton = skeleton
        self._converter = converter

    def merge(self, witness: Mapping[str, torch.Tensor]) -> OriginStep:
        """Every merged parameter against the witness's of the same name, in the witness's type."""
        wrong, count = [], 0
        for name, own in self._parameters():
            other = witness.get(name)
            if other is None:
                continue
            count += 1
            if other.shape != own.shape or not torch.equal(own.to(other.dtype), other):
                wrong.append(name)
        return _told(StepWord.MERGE, wrong, count, "as PEFT merges them")

    def conversion(self, file: QuantizedFile) -> OriginStep:
        """Every matrix of an unquantized file against the merged parameter it was made of."""
        wrong, count = [], 0
        for own in self._places():
            shapes = {name: tensor.shape for name, tensor in own.items()}
            block = map_block(shapes, self._skeleton.to_checkpoint, self._converter)
            held = file.weights(Destination(own, block, self._skeleton))
            types = {
                parameter: _STORED_AS.get(file.type_of(name))
                for name in block.targets
                if file.holds(name)
                for parameter in block.parameters_of(name)
            }
            for name, tensor in held.items():
                stored = types.get(name)
                if stored is None:
                    continue
                count += 1
                if not torch.equal(own[name].to(stored).float(), tensor.float()):
                    wrong.append(name)
        return _told(StepWord.CONVERSION, wrong, count, "in the file as they were merged")

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for own in self._places():
            yield from own.items()

    def _places(self) -> Iterator[dict[str, torch.Tensor]]:
        """The merged parameters of the embedding, of each layer, of the head and of what lies outside them."""
        doors = find_model_doors(self._skeleton)
        prefixes = dict.fromkeys((*doors.prefixes.values(), *(f"{name}." for name in doors.prefixes)))
        for prefix in filter(self._skeleton.stores, prefixes):
            own = {name: tensor.detach() for name, tensor in self._skeleton.load(prefix) if not tensor.is_meta}
            if own:
                yield own
            self._skeleton.free(prefix)
        own = {name: tensor.detach() for name, tensor in self._skeleton.load("", without=tuple(prefixes))}
        yield {name: tensor for name, tensor in own.items() if not tensor.is_meta}


def _told(step: StepWord, wrong: list[str], count: int, same_words: str) -> OriginStep:
    if wrong:
        return differs(step, f"{len(wrong)} of {count} tensors differ, first {wrong[0]}")
    return same(step, f"{count} tensors are {same_words}")
