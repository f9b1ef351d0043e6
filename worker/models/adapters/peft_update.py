"""One module merged by PEFT's own layer: the arithmetic of every method that ``updates`` does not spell out.

A model with nothing but the one module is built around the base tensor, the adapter is attached to it under the
module's real path (so that patterns in the config match as they did in training), its tensors are loaded, and the layer
merges itself. Memory: the base tensor, PEFT's working copies of it, and the adapter's tensors for the module.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from api_client.contract.errors import ErrorCode, PackagingError
from worker.foreign import cast_adapter
from worker.models.adapters.updates import Precision

if TYPE_CHECKING:
    import torch

LayerKind = Literal["linear", "conv1d", "embedding"]
# config keys that choose modules of a whole model; the one module is named instead
_SELECTION = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "trainable_token_indices")
_LARGEST = "largest_module"
_build_lock = threading.Lock()


@dataclass(frozen=True)
class PeftUpdate:
    """One module merged by its PEFT layer.

    Attributes:
        module: Path of the module.
        layer: What kind of module it is.
        part: Which of its two tensors this update makes.
        shape: Shape of the module's weight.
        has_bias: Whether the module has a bias.
        config: ``adapter_config.json``, without paths.
        state: Adapter tensors by the end of their name that follows the module's path; by their whole name, which
            starts with ``base_model.``, where all modules share them.
        largest: Outputs and inputs of the largest module; shared projections are cut from that size.
    """

    module: str
    layer: LayerKind
    part: Literal["weight", "bias"]
    shape: tuple[int, ...]
    has_bias: bool
    config: Mapping[str, Any]
    state: Mapping[str, torch.Tensor]
    largest: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Outputs and inputs of the module."""
        return self.shape[::-1] if self.layer == "conv1d" else self.shape

    def apply(self, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
        """Build the module around ``tensor``, attach, merge, take the tensor out again."""
        import torch

        value = tensor.to(torch.float32, copy=True) if precision == "f32" else tensor.clone()
        weight = value if self.part == "weight" else torch.zeros(self.shape, dtype=value.dtype, device=value.device)
        bias = value if self.part == "bias" else None
        if bias is None and self.has_bias:
            bias = torch.zeros(self.size[0], dtype=value.dtype, device=value.device)
        module = _module(self.layer, weight, bias)
        with _build_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's hints about training
            try:
                layer = self._attached(module)
                layer.merge()
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError, re.error) as error:
                raise PackagingError(
                    ErrorCode.ADAPTER_UNSUPPORTED,
                    f"PEFT cannot merge {self.config.get('peft_type')} into {self.module}: {str(error)[:300]}",
                    remedy="Check that the adapter belongs to this base model; else merge it with PEFT first.",
                    fields={"feature": str(self.config.get("peft_type")), "module": self.module},
                ) from error
        merged = layer.get_base_layer()
        result: torch.Tensor = (merged.weight if self.part == "weight" else merged.bias).data
        return result

    def _attached(self, module: torch.nn.Module) -> Any:
        """PEFT's layer around ``module``, its adapter tensors loaded and widened as ``from_pretrained`` does."""
        import torch
        from peft import PeftConfig, PeftModel
        from peft.utils.save_and_load import set_peft_model_state_dict

        root = torch.nn.Module()
        _insert(root, self.module, module)
        if self.largest != self.size:
            weight = next(module.parameters()).new_zeros(1).expand(self.largest)  # a shape, no memory
            root.add_module(_LARGEST, _module("linear", weight, None))
        root.is_gradient_checkpointing = False  # type: ignore[assignment]  # else PEFT asks for input embeddings
        config = PeftConfig.from_peft_type(**self._config_for_one())
        model = PeftModel(root, config)
        prefix = f"base_model.model.{self.module}."
        state = {
            end if end.startswith("base_model.") else prefix + end: value.clone() for end, value in self.state.items()
        }
        loaded = set_peft_model_state_dict(model, state)
        if loaded.unexpected_keys:
            raise PackagingError(
                ErrorCode.ADAPTER_INVALID,
                f"{self.module}: PEFT has no use for {loaded.unexpected_keys[0]} in a {config.peft_type} adapter",
                fields={"module": self.module},
            )
        cast_adapter(model)
        return model.base_model.model.get_submodule(self.module)

    def _config_for_one(self) -> dict[str, Any]:
        config = {key: value for key, value in self.config.items() if key not in _SELECTION}
        config["target_modules"] = [self.module] if self.largest == self.size else [self.module, _LARGEST]
        config["inference_mode"] = True
        feedforward = config.get("feedforward_modules")
        if feedforward is not None:
            config["feedforward_modules"] = [self.module] if self._is_named(feedforward) else []
        return config

    def _is_named(self, modules: str | Sequence[str]) -> bool:
        """Whether IA3 takes the module for one of ``modules``: a pattern of whole paths, or ends of paths."""
        if isinstance(modules, str):
            return re.fullmatch(modules, self.module) is not None
        return self.module.endswith(tuple(modules))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors for the module."""
        return dict(self.state)

    def settings(self) -> dict[str, Any]:
        """All but the tensors."""
        return {
            "module": self.module,
            "layer": self.layer,
            "part": self.part,
            "shape": self.shape,
            "has_bias": self.has_bias,
            "config": dict(self.config),
            "largest": self.largest,
        }

    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> PeftUpdate:
        """From what :meth:`tensors` and :meth:`settings` gave."""
        return cls(**settings, state=dict(tensors))


def _insert(root: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    """Hang ``module`` under ``root`` at ``path``, with empty modules on the way."""
    import torch

    *owners, name = path.split(".")
    for owner in owners:
        child = torch.nn.Module()
        root.add_module(owner, child)
        root = child
    root.add_module(name, module)


def _module(kind: LayerKind, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module:
    """A module of ``kind`` that holds the tensors given."""
    import torch
    from transformers.pytorch_utils import Conv1D

    first, second = weight.shape
    module: torch.nn.Module
    with torch.device("meta"):
        if kind == "embedding":
            module = torch.nn.Embedding(first, second)
        elif kind == "conv1d":
            module = Conv1D(second, first)
        else:
            module = torch.nn.Linear(second, first, bias=bias is not None)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = torch.nn.Parameter(bias, requires_grad=False)
    return module
