"""What a sentence-transformers directory does with a text: pooling, dense layers, normalisation, prompts.

``modules.json`` lists the steps from the transformer's hidden states to one vector. A GGUF file says how to pool, and
for a few architectures holds the dense layers after it; every consumer normalises by itself, and none of them knows of
prompts. What the file has no place for changes every vector, so it is refused by name; prompts are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots
from worker.models.checkpoint.files import read_json, resolve_member
from worker.models.convert.consulted import MODULE_CONFIG, MODULE_WEIGHTS, MODULES, read_modules, weights_beside
from worker.models.convert.tokenizer import hub_blobs

_PROMPTS, _TRANSFORMER = "config_sentence_transformers.json", "sentence_bert_config.json"
_INVALID = ErrorCode.BASE_MODEL_INVALID
_POOLED = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "lasttoken"}
"""Kinds of pooling that llama.cpp has, by the older keys ``pooling_mode_*`` -> by the newer ``pooling_mode``."""
_WITHOUT_EFFECT = frozenset({"Transformer", "Normalize", "Dropout"})
_LINEAR = "Identity"
_MAX_PROMPTS, _MAX_PROMPT = 64, 4096
_TAKE_OUT = "Take its entry out of modules.json to package the model without this step, or use another model."


@dataclass(frozen=True)
class DenseLayer:
    """A linear layer after the pooling: ``y = W x``, W (o, i).

    Attributes:
        path: Its directory within the model.
        weights: Its safetensors file, with a tensor ``linear.weight``.
    """

    path: str
    weights: Path


@dataclass(frozen=True)
class SentenceModules:
    """The steps after the transformer.

    Attributes:
        pooling: ``mean``, ``cls`` or ``lasttoken``; None where no step says.
        dense: In order.
        lower_case: Texts are made lower case before they are cut.
        prompts: Name -> what is put before a text, without empty ones.
        default_prompt: Name of the one that is put before every text where no other is named.
        pools_prompt: Whether the tokens of a prompt take part in the pooling.
    """

    pooling: str | None = None
    dense: tuple[DenseLayer, ...] = ()
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    pools_prompt: bool = True

    def notes(self) -> tuple[str, ...]:
        """What whoever uses the file must know and cannot read from it."""
        if not self.prompts:
            return ()
        named = "; ".join(f"{name}: {text!r}" for name, text in self.prompts.items())
        default = f", {self.default_prompt} where none is named" if self.default_prompt in self.prompts else ""
        told = f"the model was trained with prompts before its texts, which no GGUF file holds ({named}{default})"
        if self.pools_prompt:
            return (told,)
        return (told, "the pooling leaves a prompt's tokens out, and llama.cpp pools over all of them")


def read_sentence_modules(places: Sequence[Path], allowed_roots: Roots) -> SentenceModules:
    """Read them from the nearest of the places that has a ``modules.json``.

    Args:
        places: Where a tokenizer is looked for, the checkpoint first.
        allowed_roots: Where symlinks of these directories may lead.

    Raises:
        PackagingError: ``base_model_invalid`` for damaged files; ``unsupported_architecture`` naming a module that is
            not known, a pooling that llama.cpp has not, and a dense layer that is more than a matrix.
    """
    owner = next((place for place in places if (place / MODULES).is_file()), None)
    if owner is None:
        return SentenceModules()
    directory = _Directory(owner, allowed_roots)
    pooling: str | None = None
    pools_prompt = True
    dense: list[DenseLayer] = []
    for module in read_modules(owner, allowed_roots):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling" and pooling is None:
            config = directory.config(f"{module['path']}/{MODULE_CONFIG}")
            pooling, pools_prompt = _pooling(config, module["path"]), config.get("include_prompt", True) is not False
        elif kind == "Dense":
            dense.append(_dense(directory, module["path"]))
        elif kind not in _WITHOUT_EFFECT:
            raise _unknown(module, owner)
    said, transformer = directory.config(_PROMPTS), directory.config(_TRANSFORMER)
    default = said.get("default_prompt_name")
    return SentenceModules(
        pooling=pooling,
        dense=tuple(dense),
        lower_case=transformer.get("do_lower_case") is True,
        prompts=_prompts(said.get("prompts")),
        default_prompt=default if isinstance(default, str) else None,
        pools_prompt=pools_prompt,
    )


def files_beside(
    places: Sequence[Path], allowed_roots: Roots, modules: SentenceModules | None = None
) -> tuple[Path, ...]:
    """The weight files besides the model's own that tensors of its file are made of, sorted.

    Args:
        places: As for :func:`read_sentence_modules`.
        allowed_roots: The same.
        modules: What that tells of them, where it was asked already.

    Raises:
        PackagingError: as :func:`read_sentence_modules`.
    """
    modules = modules or read_sentence_modules(places, allowed_roots)
    dense = (layer.weights for layer in modules.dense)
    return tuple(sorted({*weights_beside(places, allowed_roots).values(), *dense}))


def check_dense(modules: SentenceModules, tensors: Sequence[str], architecture: str) -> None:
    """Refuse a file that lacks the dense layers after the pooling: its vectors would be others, of another length.

    Args:
        modules: The model's.
        tensors: GGUF names of the planned file's tensors.
        architecture: For the message.

    Raises:
        PackagingError: ``unsupported_architecture`` naming them.
    """
    held = [name for name in tensors if name.startswith("dense_")]
    if len(held) >= len(modules.dense):
        return
    lost = ", ".join(layer.path for layer in modules.dense)
    raise PackagingError(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        f"{architecture} files have no place for the dense layers after the pooling: {lost}",
        remedy=_TAKE_OUT,
        fields={"modules": [layer.path for layer in modules.dense], "architecture": architecture},
    )


@dataclass(frozen=True)
class _Directory:
    """The directory whose ``modules.json`` decides."""

    path: Path
    allowed_roots: Roots

    def member(self, name: str) -> Path:
        return resolve_member(self.path, name, self.allowed_roots.also(*hub_blobs(self.path)), _INVALID)

    def config(self, name: str) -> Mapping[str, Any]:
        """A JSON object; an empty one where there is no such file."""
        path = self.member(name)
        return read_json(path, _INVALID) if path.is_file() else {}


def _pooling(config: Mapping[str, Any], path: str) -> str | None:
    on = [
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    mode = config.get("pooling_mode")
    if not on and isinstance(mode, str):
        on = [older for older, newer in _POOLED.items() if newer == mode] or [mode]
    if not on and isinstance(mode, list | tuple):
        on = [str(kind) for kind in mode]
    if len(on) == 1 and on[0] in _POOLED:
        return _POOLED[on[0]]
    if not on:
        return None
    raise PackagingError(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        f"{path} pools by {' and '.join(sorted(on))}, and llama.cpp pools by one of {', '.join(_POOLED)} alone",
        remedy="Train with one of these kinds of pooling, or use another model.",
        fields={"module": path, "pooling": sorted(on)},
    )


def _dense(directory: _Directory, path: str) -> DenseLayer:
    config = directory.config(f"{path}/{MODULE_CONFIG}")
    activation = str(config.get("activation_function", _LINEAR)).rpartition(".")[2]
    more = [
        fact for fact, said in (("a bias", config.get("bias") is True), (activation, activation != _LINEAR)) if said
    ]
    if more:
        raise PackagingError(
            ErrorCode.UNSUPPORTED_ARCHITECTURE,
            f"the dense layer {path} has {' and '.join(more)}, and llama.cpp multiplies by its matrix alone",
            remedy=_TAKE_OUT,
            fields={"module": path},
        )
    weights = directory.member(f"{path}/{MODULE_WEIGHTS}")
    if not weights.is_file():
        raise PackagingError(
            _INVALID,
            f"{directory.path / MODULES} names a dense layer in {path}, and {path}/{MODULE_WEIGHTS} is missing",
            remedy=f"Save the model again with safetensors; pickled weights of {path} are not read.",
            fields={"file": f"{path}/{MODULE_WEIGHTS}"},
        )
    return DenseLayer(path, weights)


def _prompts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    told = {name: text for name, text in value.items() if isinstance(text, str) and text}
    return {name[:_MAX_PROMPT]: text[:_MAX_PROMPT] for name, text in list(told.items())[:_MAX_PROMPTS]}


def _unknown(module: Mapping[str, Any], owner: Path) -> PackagingError:
    return PackagingError(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        f"{owner / MODULES} has the module {module['type'][:200]} in {module['path'][:200]!r}, which is not known "
        "here: a GGUF file would give vectors without it",
        remedy=_TAKE_OUT,
        fields={"module": module["type"][:200]},
    )
