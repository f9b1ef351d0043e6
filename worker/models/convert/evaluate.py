"""From upstream's lazy tensors to bytes, bit for bit what upstream would write, several times faster.

Upstream builds, per output tensor, a tree of lazy operations: read, widen bfloat16 to float32, permute or cut or stack
(``modify_tensors``), hand over to numpy, round to the output type. Evaluated by upstream that costs a float32 copy
and a rounding in numpy on one thread, and every intermediate stays in memory until its tree is dropped. Here:

- A tree is walked without keeping intermediates, so peak memory is a few times the tensor, and trees can be walked by
  several threads.
- Rounding is torch's (:class:`Rounding`). Both round to nearest even; they differ in the bits of NaN only, and a tensor
  with NaN goes back to upstream's own code.
- **Layout-only trees stay in bfloat16.** Widening, moving elements about and rounding back is the same as moving them:
  bfloat16 -> float32 is exact, and every widened value rounds back to itself. :class:`_KeepBfloat16` proves that a tree
  is one of these while it runs, by refusing every operation that is not in a list of pure movements; a tree that
  computes anything is run again in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from worker.foreign import (
    lazy_arguments,
    lazy_function,
    lazy_keywords,
    lazy_value,
    operation_of,
    private_movements,
    widening,
)
from worker.models.convert.weights import WeightEntry

_aten = torch.ops.aten
_MOVEMENTS = frozenset(
    {
        _aten.alias, _aten.cat, _aten.clone, _aten.detach, _aten.expand,
        _aten.flip, _aten.index, _aten.index_select, _aten.permute, _aten.select, _aten.slice, _aten.split,
        _aten.split_with_sizes, _aten.squeeze, _aten.stack, _aten.t, _aten.transpose, _aten.unbind, _aten.unsqueeze,
        _aten.view,
    }
    | private_movements()
)  # fmt: skip
_WIDENING = widening()
_RENAMING = frozenset({_aten.view.dtype})  # reads the same bits as another type: no movement of elements


class Rounding:
    """The last step of a tree: upstream's ``gguf.quants.quantize`` for a plain float type, as a node we recognise.

    Args:
        dtype: Type to round to.
        original: Upstream's function for the same, used where torch's bits could differ.
    """

    def __init__(self, dtype: torch.dtype, original: Any) -> None:
        self.dtype = dtype
        self._original = original

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Round a numpy array; the result has upstream's shape and dtype (bfloat16: bytes)."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.dtype is not torch.float32 and bool(torch.isnan(tensor).any()):
            exact: NDArray[Any] = self._original(values)
            return exact
        return as_numpy(tensor.to(self.dtype))


def as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A contiguous numpy array over the tensor's memory; bfloat16 becomes bytes, the last axis twice as long."""
    tensor = tensor.contiguous()
    array: NDArray[Any] = (tensor.view(torch.uint8) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


@contextmanager
def shared_cores(threads: int) -> Iterator[None]:
    """While ``threads`` tensors are evaluated at a time, let torch use that share of the cores for each of them.

    Otherwise every evaluation would start a thread per core, and they would wait for each other. The number of threads
    changes no bit (``worker.models.adapters.updates``).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // max(1, threads)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Evaluator:
    """Evaluates lazy tensors of one upstream package.

    Args:
        lazy_base: Upstream's ``gguf.LazyBase``.
        lazy_torch: Upstream's ``conversion.LazyTorchTensor``.
    """

    def __init__(self, lazy_base: type[Any], lazy_torch: type[Any]) -> None:
        self._lazy = lazy_base
        self._lazy_torch = lazy_torch

    def sources(self, node: Any) -> Iterator[str]:
        """Names of the weights that a tree reads, once per read."""
        for leaf in self._walk(node):
            if isinstance(leaf, WeightEntry):
                yield leaf.name

    def bytes_of(self, node: Any) -> NDArray[np.uint8]:
        """The bytes of an output tensor.

        Args:
            node: A lazy tensor, or an array that upstream has computed already.

        Returns:
            Flat bytes; may be a view of the base model's mapped file, so treat as read-only.
        """
        with torch.no_grad():  # not inference_mode: there torch shows a dispatch mode composite operations whole
            function = lazy_function(node) if isinstance(node, self._lazy) else None
            array = self._rounded(node, function) if isinstance(function, Rounding) else self._value(node)
        flat: NDArray[np.uint8] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return flat

    def _rounded(self, node: Any, rounding: Rounding) -> NDArray[Any]:
        (values,) = lazy_arguments(node)
        # upstream's way from torch to numpy is one node whose only argument is the torch tree
        inputs = lazy_arguments(values) if isinstance(values, self._lazy) else ()
        inner = inputs[0] if len(inputs) == 1 else None
        if rounding.dtype is torch.bfloat16 and isinstance(inner, self._lazy_torch):
            leaves = self._read_leaves(inner)
            try:
                with _KeepBfloat16():  # type: ignore[no-untyped-call]
                    moved = self._value(inner, leaves)
                if moved.dtype is torch.bfloat16:
                    return as_numpy(moved)
            except _ComputesError:
                pass
            return rounding(self._value(inner, leaves).numpy())
        return rounding(self._value(values))

    def _read_leaves(self, node: Any) -> dict[int, torch.Tensor]:
        """The weights a tree reads, by identity of the entry; read before a tree is tried, so that it is done once."""
        leaves: dict[int, torch.Tensor] = {}
        for leaf in self._walk(node):
            if isinstance(leaf, WeightEntry) and id(leaf) not in leaves:
                leaves[id(leaf)] = leaf.load()
        return leaves

    def _value(self, node: Any, leaves: dict[int, torch.Tensor] | None = None) -> Any:
        """Value of a tree. Nodes with several parents are computed once; nothing else is kept."""
        leaves = self._read_leaves(node) if leaves is None else leaves
        parents = Counter(id(part) for part in self._walk(node) if isinstance(part, self._lazy))
        return self._compute(node, leaves, parents, {})

    def _compute(self, part: Any, leaves: dict[int, torch.Tensor], parents: Counter[int], kept: dict[int, Any]) -> Any:
        # A method and not a function inside _value: one that calls itself would hold the leaves in a cycle, and tensors
        # would pile up until the garbage collector comes round.
        if isinstance(part, list | tuple):
            return type(part)(self._compute(item, leaves, parents, kept) for item in part)
        if not isinstance(part, self._lazy):
            return part
        known = lazy_value(part)
        if known is not None:
            return known
        if id(part) in kept:
            return kept[id(part)]
        arguments = lazy_arguments(part)
        if len(arguments) == 1 and isinstance(arguments[0], WeightEntry):
            return leaves[id(arguments[0])]
        values = [self._compute(item, leaves, parents, kept) for item in arguments]
        result = lazy_function(part)(*values, **lazy_keywords(part))
        if parents[id(part)] > 1:
            kept[id(part)] = result
        return result

    def _walk(self, node: Any) -> Iterator[Any]:
        """All lazy nodes (once per parent) and all leaves (once per tree) under a node."""
        seen: set[int] = set()
        stack = [node]
        while stack:
            part = stack.pop()
            if isinstance(part, list | tuple):
                stack.extend(part)
            elif isinstance(part, self._lazy):
                yield part
                if id(part) not in seen and lazy_value(part) is None:
                    seen.add(id(part))
                    stack.extend(lazy_arguments(part))
            elif isinstance(part, WeightEntry) and id(part) not in seen:
                seen.add(id(part))
                yield part


class _ComputesError(Exception):
    """A tree does more than move elements."""


class _KeepBfloat16(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves bfloat16 alone where it would be widened to float32; raises where anything but movement is done."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func is _WIDENING and kwargs.get("dtype") in (torch.float32, args[0].dtype):
            return args[0]
        if operation_of(func) not in _MOVEMENTS or func in _RENAMING:
            raise _ComputesError
        return func(*args, **kwargs)
