"""Everything private of other packages that trainpack relies on, each with the reason.

A release of one of these packages may drop or change what stands here without notice. ``tests/unit/test_foreign.py``
tries each of them on the installed versions, so that an update fails there first and not in a job. What the command
line needs of typer stands in ``api_client.cli.foreign``. No package is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The conversion package: its tree of lazy tensors (``gguf.LazyBase``) and its writer.
# ``worker.models.convert.evaluate`` walks the tree itself: upstream's own evaluation keeps every intermediate and
# takes float32 copies of all of them.


def lazy_value(node: Any) -> Any:
    """The value that a lazy node has already, or None."""
    return node._data


def lazy_meta(node: Any) -> Any:
    """Shape and dtype of a lazy node, as an array or tensor without data."""
    return node._meta


def lazy_function(node: Any) -> Callable[..., Any]:
    """What a lazy node calls to compute itself."""
    function: Callable[..., Any] = node._func
    return function


def lazy_arguments(node: Any) -> Sequence[Any]:
    """What a lazy node is computed from: values, and other nodes."""
    arguments: Sequence[Any] = node._args
    return arguments


def lazy_keywords(node: Any) -> Mapping[str, Any]:
    """What a lazy node passes by keyword."""
    keywords: Mapping[str, Any] = node._kwargs
    return keywords


def converted_dtypes(lazy_class: Any) -> frozenset[str]:
    """Names of the safetensors dtypes that the converter's lazy tensor reads; of another one it says nothing but it."""
    return frozenset(lazy_class._dtype_str_map)


def packed_value(writer: Any, entry: Any) -> bytes:
    """A metadata entry as upstream's ``GGUFWriter`` encodes it: the odd ones, whose rules only upstream has."""
    encoded: bytes = writer._pack_val(entry.value, entry.type, add_vtype=True, sub_type=entry.sub_type)
    return encoded


# torch: the operations that a dispatch mode sees have names of their own, some of them private.


def private_movements() -> frozenset[Any]:
    """Operations that move elements only, and that torch makes of public ones (``reshape``, ``view``)."""
    import torch

    return frozenset({torch.ops.aten._reshape_alias, torch.ops.aten._unsafe_view})


def widening() -> Any:
    """The operation that ``Tensor.to`` becomes."""
    import torch

    return torch.ops.aten._to_copy.default


def operation_of(overload: Any) -> Any:
    """The operation that an overload (``aten.view.default``) belongs to (``aten.view``)."""
    return overload._overloadpacket


def private_grouped_mm() -> Callable[..., Any] | None:
    """What older releases have for ``torch.nn.functional.grouped_mm``; transformers' mixtures call it there."""
    import torch

    return getattr(torch, "_grouped_mm", None)


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place: the only sign that the same object holds other numbers."""
    version: int = tensor._version
    return version


def registered_parameters(module: torch.nn.Module) -> MutableMapping[str, torch.nn.Parameter | None]:
    """A module's parameters, to be replaced while they are registered; ``setattr`` would register them again."""
    parameters: MutableMapping[str, torch.nn.Parameter | None] = module._parameters
    return parameters


# transformers: models are built and filled layer by layer, which its public ``from_pretrained`` cannot do.


def dtype_plan(model: Any) -> Any:
    """The weights that transformers keeps in float32, whatever the model's type is."""
    return model._get_dtype_plan(model.dtype)


def note_conversions(model: Any, conversions: Iterable[Any]) -> None:
    """Tell a model how its tensors were renamed on loading, as ``from_pretrained`` does, so that this can be undone."""
    model._weight_conversions = list(conversions)


def finite_config(config_class: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` with its infinite numbers, which transformers writes as objects and reads through this."""
    decoded: dict[str, Any] = config_class._decode_special_floats(dict(config))
    return decoded


def attend_eagerly(config: Any) -> None:
    """Have a model built from a config alone use plain attention, which needs no kernel package."""
    config._attn_implementation = "eager"


# PEFT


def cast_adapter(model: Any) -> None:
    """Cast loaded adapter weights to float32 as ``PeftModel.from_pretrained`` does, before an update is computed."""
    model.base_model._cast_adapter_dtype(adapter_name="default", autocast_adapter_dtype=True)


# multiprocessing


def take_life_line() -> int | None:
    """The descriptor whose last copy keeps the fork server alive, now the caller's to close; None where there is none.

    A child inherits a copy. There is no public way to let go of it, and the fork server would outlive the worker.
    """
    import multiprocessing.forkserver

    server: Any = multiprocessing.forkserver._forkserver
    descriptor: int | None = server._forkserver_alive_fd
    server._forkserver_alive_fd = None
    return descriptor


def use_directory(directory: str) -> None:
    """Have multiprocessing put its sockets into a directory, and not into one of its own (``pymp-*``).

    It removes its own at its end only, so that each killed worker leaves one for ever.
    """
    import multiprocessing.process

    multiprocessing.process.current_process()._config["tempdir"] = directory  # type: ignore[attr-defined]
