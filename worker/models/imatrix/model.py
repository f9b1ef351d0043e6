"""The model without its weights, and its weights a part at a time.

The skeleton comes from transformers and ``config.json`` alone: parameters on the meta device, buffers (rotary tables)
real. Weights come from the base model's files through the overlay, so the model that runs is the merged one although
it exists nowhere on disk. transformers' own weight conversion renames, transposes and joins tensors (the experts of a
layer into one parameter), and takes them apart again. This is the one module that touches transformers' loader.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from api_client.contract.errors import ErrorCode, PackagingError
from worker.foreign import dtype_plan, note_conversions, registered_parameters
from worker.models.hardening import ModelCodeRefusedError, locked_down

MODEL_ERRORS = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError, RuntimeError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for a config or a model that it cannot build or run."""

WITHOUT_MATRIX = "Give an imatrix file, or choose quant types that need none."


class LazyTensor(Protocol):
    """A tensor of the merged model that is read when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions, outermost first."""

    def load(self) -> torch.Tensor:
        """The merged values, in the base model's dtype; may be called from several threads."""


class _OnSlice:
    """Gives transformers' loader, which slices what it loads, a tensor only then."""

    def __init__(self, tensor: LazyTensor) -> None:
        self._tensor = tensor

    def __getitem__(self, _index: object) -> torch.Tensor:
        return self._tensor.load()


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Skeleton:
    """A transformers model whose weights are loaded and freed by part.

    Attributes:
        model: The whole model, e.g. ``LlamaForCausalLM``; its head is never loaded.
        body: The part that runs, without the head.
        prefix: What names within ``body`` begin with in ``model``: ``model.``, or nothing.
    """

    def __init__(
        self,
        directory: Path,
        tensors: Mapping[str, LazyTensor],
        device: torch.device,
        config_changes: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the skeleton; no weight is read.

        Args:
            directory: Hugging Face directory with ``config.json``.
            tensors: Every tensor of the merged model by its name in the checkpoint.
            device: Where weights go.
            config_changes: Settings of config.json, dotted where nested, that the merged model has otherwise.

        Raises:
            PackagingError: ``unsupported_architecture``.
        """
        self._changes = dict(config_changes or {})
        self.model = _build(directory, device, self._changes)
        self._tensors = tensors
        self._device = device
        self._read_mapping()
        self._fit_vocabulary(directory)
        head = self.model.base_model_prefix
        self.prefix = f"{head}." if head and hasattr(self.model, head) else ""
        self.body: torch.nn.Module = getattr(self.model, head) if self.prefix else self.model

    def _read_mapping(self) -> None:
        """Which checkpoint tensors each parameter or buffer is made of."""
        self._mapping = get_model_conversion_mapping(self.model)
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        targets = self.model.state_dict()
        prefix = self.model.base_model_prefix
        self._sources: dict[str, list[str]] = defaultdict(list)
        for name in self._tensors:
            target, _ = rename_source_key(name, renamings, converters, prefix, targets)
            if target not in targets and name in targets:
                target, _ = rename_source_key(name, [], [], prefix, targets)
            self._sources[target].append(name)

    def _fit_vocabulary(self, directory: Path) -> None:
        """Build again with as many embedding rows as the merged model has, where config.json says another number."""
        embedding = self.model.get_input_embeddings()
        name = next((name for name, module in self.model.named_modules() if module is embedding), None)
        sources = self._sources.get(f"{name}.weight", [])
        if len(sources) != 1 or not isinstance(embedding, torch.nn.Embedding):
            return
        rows = self._tensors[sources[0]].shape[0]
        if rows != embedding.num_embeddings:
            self.model = _build(directory, self._device, self._changes, vocabulary_rows=rows)
            self._read_mapping()

    @property
    def device(self) -> torch.device:
        """Where weights go."""
        return self._device

    @property
    def embedding_rows(self) -> int:
        """Token ids the model knows."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def load(
        self, prefix: str, without: tuple[str, ...] = (), tensors: Mapping[str, LazyTensor] | None = None
    ) -> list[tuple[str, torch.Tensor]]:
        """Load the weights under ``prefix``.

        Args:
            prefix: Beginning of the names of parameters, e.g. ``model.layers.3.``.
            without: Beginnings of names to leave out.
            tensors: Other values of the same names and shapes; the model's own where not given.

        Returns:
            The parameters under the prefix, by name.

        Raises:
            PackagingError: ``base_model_invalid`` where tensors are missing or of another shape than config.json says.
        """
        values = self._tensors if tensors is None else tensors
        wanted = {
            name: _OnSlice(values[name])
            for target, names in self._sources.items()
            if target.startswith(prefix) and not target.startswith(without)
            for name in names
        }
        plan = dtype_plan(self.model)
        config = LoadStateDictConfig(
            device_map={"": self._device}, dtype=self.model.dtype, dtype_plan=plan, weight_mapping=self._mapping
        )
        with _no_progress_bar():
            info, _ = convert_and_load_state_dict_in_model(self.model, wanted, config, None)
        self.model.tie_weights(recompute_mapping=False)
        parameters = list(self._parameters(prefix, without))
        missing = [name for name, parameter in parameters if parameter.is_meta]
        faults = [name for name, *_ in info.mismatched_keys] + list(info.conversion_errors) + missing
        if faults:
            raise PackagingError(
                ErrorCode.BASE_MODEL_INVALID,
                f"{len(faults)} weights are missing or do not fit config.json, first {faults[0]}",
                fields={"tensors": faults[:20]},
            )
        return parameters

    def keep_rows(self, ids: torch.Tensor) -> str:
        """Have the input embedding hold the rows of some token ids alone; for short texts through large vocabularies.

        Args:
            ids: int64, any shape; no other ids may run afterwards.

        Returns:
            Beginning of the names of its parameters, not to be loaded any more; empty where it is of another kind and
            is to be loaded whole.
        """
        embedding = self.model.get_input_embeddings()
        name = next((name for name, module in self.model.named_modules() if module is embedding), "")
        sources = self._sources.get(f"{name}.weight", [])
        if len(sources) != 1 or not isinstance(embedding, torch.nn.Embedding):
            return ""
        wanted = torch.unique(ids)
        rows = self._tensors[sources[0]].load()[wanted]
        self.put({f"{name}.weight": rows.to(device=self._device, dtype=self.model.dtype)})

        def among_kept(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            places = torch.searchsorted(wanted.to(arguments[0].device), arguments[0])
            return (places, *arguments[1:])

        for module in self.model.modules():
            if isinstance(module, torch.nn.Embedding) and module.weight is embedding.weight:
                module.padding_idx = None
                module.register_forward_pre_hook(among_kept)
        return f"{name}."

    def stores(self, prefix: str) -> bool:
        """Whether the checkpoint has weights under ``prefix``; a head that is the embedding has none of its own."""
        return any(target.startswith(prefix) for target in self._sources)

    def put(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put tensors in the place of parameters, by name; tied parameters follow."""
        for name, tensor in values.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=False))
        self.model.tie_weights(recompute_mapping=False)

    def free(self, prefix: str) -> None:
        """Drop the weights under ``prefix``, also where a tied parameter holds them; buffers stay."""
        for name, parameter in self._parameters(prefix, ()):
            owner, _, leaf = name.rpartition(".")
            empty = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            setattr(self.model.get_submodule(owner), leaf, empty)
        if any(name.startswith(prefix) for name in self.model.all_tied_weights_keys.values()):
            self.model.tie_weights(recompute_mapping=False)

    def _parameters(self, prefix: str, without: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name.startswith(prefix) and not name.startswith(without):
                yield name, parameter

    def to_checkpoint(self, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors named and shaped like parameters, renamed and taken apart as saving the model would do it."""
        note_conversions(self.model, (entry for entry in self._mapping if entry.was_used()))
        reverted: dict[str, torch.Tensor] = revert_weight_conversion(self.model, dict(named))
        prefix = f"{self.model.base_model_prefix}."
        return {self._checkpoint_name(name, prefix): tensor for name, tensor in reverted.items()}

    def _checkpoint_name(self, name: str, prefix: str) -> str:
        """Undo what loading adds or drops by itself: the prefix of the model without its head."""
        if name in self._tensors:
            return name
        other = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
        return other if other in self._tensors else name


def _build(
    directory: Path, device: torch.device, changes: Mapping[str, Any], vocabulary_rows: int | None = None
) -> Any:
    """The model class that config.json names, with meta parameters and real buffers on ``device``."""
    try:
        with locked_down():
            config = transformers.AutoConfig.from_pretrained(directory)
    except (OSError, ModelCodeRefusedError, *MODEL_ERRORS) as error:
        raise _cannot_build(directory, error) from error
    for part in (config, config.get_text_config()):
        vars(part).pop("quantization_config", None)  # weights come plain, whatever the files hold
    names = changes.get("architectures") or config.architectures or [""]
    cls = getattr(transformers, names[0], None)
    if cls is None:
        raise PackagingError(
            ErrorCode.UNSUPPORTED_ARCHITECTURE,
            f"{directory}: transformers {transformers.__version__} has no model class {names[0]!r} to compute an"
            " importance matrix with",
            remedy=WITHOUT_MATRIX,
            fields={"architecture": names[0]},
        )
    for name, value in changes.items():
        owner, _, leaf = name.rpartition(".")
        setattr(attrgetter(owner)(config) if owner else config, leaf, value)
    if vocabulary_rows is not None:
        config.get_text_config().vocab_size = vocabulary_rows
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    dtype = torch.bfloat16 if device.type == "cuda" and stored is torch.bfloat16 else torch.float32
    try:
        with locked_down(), _parameters_on_meta():
            model = cls._from_config(config, dtype=dtype, experts_implementation="eager")
    except (OSError, ModelCodeRefusedError, *MODEL_ERRORS) as error:
        raise _cannot_build(directory, error) from error
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model.eval().requires_grad_(False)


def _cannot_build(directory: Path, error: Exception) -> PackagingError:
    return PackagingError(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        f"{directory}: transformers {transformers.__version__} cannot build the model to compute an importance matrix"
        f" with: {type(error).__name__}: {error}",
        remedy=WITHOUT_MATRIX,
    )


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Every parameter that a module registers inside goes to the meta device before it is initialised."""
    original = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        original(module, name, parameter)
        if parameter is not None:
            registered_parameters(module)[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers' progress bar, one per loaded layer, off the stage's standard error."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
