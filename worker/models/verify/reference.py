"""What transformers makes of a few texts with the merged model: the vectors and scores that its files are held to.

The model is base and overlay, loaded a layer at a time in float32. Memory: one layer, the embedding's rows of the
texts' own tokens, and a head where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from api_client.contract.errors import PackagingError
from worker.models.adapters.names import is_head, text_embedding
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel, read_safetensors_header
from worker.models.checkpoint.mapping import file_identity, map_tensor
from worker.models.convert.sentence_modules import DenseLayer, SentenceModules
from worker.models.convert.tokenizer import TokenizerChoice
from worker.models.convert.weights import MergedWeights
from worker.models.evaluate.tokenizer import load_tokenizer
from worker.models.imatrix.compute import layer_doors
from worker.models.imatrix.lockstep import Door, Lockstep
from worker.models.imatrix.model import MODEL_ERRORS, Skeleton
from worker.setting import WorkSetting

_POOLER = "pooler"
_YES_NO = ("yes", "no")
_SEGMENTS = "token_type_ids"


class NoReferenceError(Exception):
    """transformers cannot be asked here; the message says why."""


@dataclass(frozen=True)
class PairScores:
    """Scores of documents for one query.

    Attributes:
        trained: As the model was trained to be asked.
        in_one_segment: With both texts in the first segment, which is how llama.cpp puts a pair; the same where a model
            knows no segments.
    """

    trained: tuple[float, ...]
    in_one_segment: tuple[float, ...]


@dataclass(frozen=True)
class TrainedModel:
    """A merged model as it lies on disk, to be asked by transformers.

    Attributes:
        base: The base model.
        overlay: What was trained, None where nothing is merged.
        tokenizer: The run's.
        modules: What follows the transformer.
        setting: Is asked whether to stop between layers.
    """

    base: BaseModel
    overlay: Overlay | None
    tokenizer: TokenizerChoice
    modules: SentenceModules
    setting: WorkSetting

    def vectors(self, texts: Sequence[str], pooling: str) -> list[list[float]]:
        """One vector of each text, not normalised.

        Args:
            texts: As they are cut, prompts included.
            pooling: ``mean``, ``cls`` or ``lasttoken``.

        Raises:
            NoReferenceError: transformers has no such model, or does not run it.
            StopRequested: As asked.
        """
        with _asked():
            inputs = [{"input_ids": torch.tensor([ids])} for ids in self.cut(texts)]
            run = _Run(self._skeleton(), self.setting)
            dense = [_matrix(layer) for layer in self.modules.dense]
            made = []
            for output in run.body(inputs):
                vector = _pooled(output.last_hidden_state[0].float(), pooling)
                for matrix in dense:
                    vector = matrix @ vector
                made.append(vector.tolist())
            return made

    def cut(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text with the tokens that belong around it.

        Raises:
            PackagingError: ``tokenizer_unsupported``.
        """
        tokenizer = self._tokenizer()
        return [tokenizer(text.lower() if self.modules.lower_case else text)["input_ids"] for text in texts]

    def scores(self, query: str, documents: Sequence[str], template: str | None) -> PairScores:
        """The first score of each document.

        Args:
            query: The query.
            documents: At least one.
            template: Of a language model that ranks by the probability of its answer, what it is asked, with
                ``{query}`` and ``{document}``; None where a head scores pairs.

        Raises:
            NoReferenceError: as :meth:`vectors`.
        """
        with _asked():
            cut = self._tokenizer()
            if template is not None:
                asked = [template.replace("{query}", query).replace("{document}", text) for text in documents]
                inputs = [self._input(cut(text, add_special_tokens=False)) for text in asked]
                rows = self._answer_rows(cut)
                states = [
                    output.last_hidden_state[0, -1].float()
                    for output in _Run(self._skeleton(), self.setting).body(inputs)
                ]
                scores = tuple(float(torch.softmax(rows @ state, 0)[0]) for state in states)
                return PairScores(scores, scores)
            skeleton = self._skeleton()
            pairs = [cut(query, text, return_token_type_ids=True) for text in documents]
            segments = int(getattr(skeleton.model.config, "type_vocab_size", 1) or 1) > 1
            inputs = [self._input(pair) for pair in pairs]
            if segments:
                inputs += [self._input(pair) | {_SEGMENTS: torch.tensor([pair[_SEGMENTS]])} for pair in pairs]
            scores = tuple(float(output.logits[0, 0]) for output in _Run(skeleton, self.setting).whole(inputs))
            return PairScores(scores[-len(documents) :], scores[: len(documents)])

    def _tokenizer(self) -> Any:
        return load_tokenizer(self.tokenizer, self.base.config)

    def _skeleton(self) -> Skeleton:
        weights = MergedWeights(self.base, self.overlay)
        return Skeleton(self.base.directory, weights.entries(), torch.device("cpu"), weights.config_changes())

    @staticmethod
    def _input(cut: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([cut["input_ids"]])}

    def _answer_rows(self, tokenizer: Any) -> torch.Tensor:
        """The head's rows of the two answers, ``(2, hidden)``; the embedding's where it is the head as well."""
        weights = MergedWeights(self.base, self.overlay)
        name = next((name for name in sorted(weights.names()) if is_head(name)), None) or text_embedding(self.base)
        if name is None:
            raise NoReferenceError("its head is not known")
        ids = tokenizer.convert_tokens_to_ids(list(_YES_NO))
        return weights.load(name)[torch.tensor(ids)].float()


@dataclass(frozen=True)
class _Run:
    """Forward passes of one skeleton, each text by itself, layer by layer."""

    skeleton: Skeleton
    setting: WorkSetting

    def body(self, inputs: Sequence[Mapping[str, torch.Tensor]]) -> list[Any]:
        """Outputs of the model without its head."""
        body = self.skeleton.body
        if getattr(body, _POOLER, None) is not None:
            setattr(body, _POOLER, None)  # a layer for another task, which encoders are saved with or without
        return self._outputs(inputs, self.skeleton.prefix, lambda given: body(**given, use_cache=False))

    def whole(self, inputs: Sequence[Mapping[str, torch.Tensor]]) -> list[Any]:
        """Outputs of the model with its head."""
        return self._outputs(inputs, "", lambda given: self.skeleton.model(**given))

    def _outputs(
        self,
        inputs: Sequence[Mapping[str, torch.Tensor]],
        prefix: str,
        ask: Callable[[Mapping[str, torch.Tensor]], Any],
    ) -> list[Any]:
        skeleton = self.skeleton
        rows = skeleton.keep_rows(torch.cat([given["input_ids"].flatten() for given in inputs]))
        doors = layer_doors(skeleton)
        without = tuple(f"{door.name}." for door in doors) + ((rows,) if rows else ())
        skeleton.load(prefix, without=without)
        outputs: list[Any] = [None] * len(inputs)

        def body(number: int) -> None:
            outputs[number] = ask(inputs[number])

        def enter(door: Door, _waiting: Sequence[int]) -> None:
            skeleton.load(f"{door.name}.")

        def leave(door: Door, _waiting: Sequence[int]) -> None:
            skeleton.free(f"{door.name}.")

        lockstep = Lockstep(doors, enter, leave, torch.no_grad)
        with torch.no_grad():
            lockstep.run(
                [partial(body, number) for number in range(len(inputs))], lambda _door: None, self.setting.should_stop
            )
        return outputs


@contextmanager
def _asked() -> Iterator[None]:
    """The edge to transformers: what it does not have or run is no fault of a file's."""
    try:
        yield
    except PackagingError as error:
        raise NoReferenceError(error.message) from error
    except MODEL_ERRORS as error:
        raise NoReferenceError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _pooled(states: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector of the states of all tokens, ``(tokens, hidden)``."""
    if pooling == "mean":
        return states.mean(0)
    return states[0] if pooling == "cls" else states[-1]


def _matrix(layer: DenseLayer) -> torch.Tensor:
    entry = read_safetensors_header(layer.weights).tensors.get("linear.weight")
    if entry is None:
        raise NoReferenceError(f"{layer.path} has no linear.weight")
    return map_tensor(entry, file_identity(layer.weights)).float()
