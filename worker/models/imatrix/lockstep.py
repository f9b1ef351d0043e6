"""Several forward passes side by side, one layer at a time.

A model larger than memory can still run if every batch of tokens passes layer 0 before any passes layer 1: then only
one layer's weights are needed at a time. What a model does between its layers (masks, positions, residual streams,
which arguments a layer gets) differs from architecture to architecture, so that code is not imitated: every batch
runs the model's own ``forward`` in a thread of its own, and that thread stops at the door of each layer.

::

    batch threads                         the calling thread
    forward ... layer 0 -> wait           loads layer 0, runs it for batch 0, 1, 2, ..., frees it
            <- output, go on
            ... layer 1 -> wait           loads layer 1, ...

Exactly one thread runs at any time; a batch thread goes on only when told to and hands control back at its next layer
or at its end. The order of all work is therefore fixed. Layers run in the calling thread, with all cores; the code
between them is light and gets one core, so that a hundred waiting threads do not each keep a pool of workers.

A door is one module of the model's outermost module lists (:func:`find_doors`). Weights outside them stay loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from worker.stop import ShouldStop, StopRequested


@dataclass(frozen=True)
class Door:
    """A layer that passes stop at: its name in the model, and the module."""

    name: str
    module: torch.nn.Module


class _Abandoned(BaseException):
    """Raised in a waiting thread when the run ends early, so that it unwinds."""


@dataclass
class _Pass:
    """One thread's state: where it waits, with which arguments, and what it is told."""

    body: Callable[[], object]
    turn: threading.Event = field(default_factory=threading.Event)
    handed_back: threading.Event = field(default_factory=threading.Event)
    waits_at: int | None = None
    call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    answer: Any = None
    abandoned: bool = False
    error: BaseException | None = None


def find_doors(model: torch.nn.Module) -> list[Door]:
    """The layers of ``model``: members of its outermost module lists, in order; empty if there are none."""
    doors: list[Door] = []
    lists: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in lists):
            continue
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1:
            lists.append(name)
            doors.extend(Door(f"{name}.{key}", layer) for key, layer in module.named_children())
    return doors


class Lockstep:
    """Runs passes over a model in lockstep.

    Args:
        doors: The layers, in the order in which to prefer them.
        enter: Called before a layer runs for a group of waiting passes, with their numbers; loads its weights.
        leave: Called when the group has passed the layer; frees them.
        scope: Makes the context that every batch thread runs in (gradient mode and function modes are per thread).
        groups: Parts the numbers of the passes that wait at a layer into groups, in order; one group where not given.
        select: Called with a pass's number before it runs from its beginning to its first layer.

    Attributes:
        running: Number of the pass whose layer runs.
    """

    def __init__(
        self,
        doors: Sequence[Door],
        enter: Callable[[Door, Sequence[int]], None],
        leave: Callable[[Door, Sequence[int]], None],
        scope: Callable[[], AbstractContextManager[object]],
        *,
        groups: Callable[[Door, Sequence[int]], Iterable[Sequence[int]]] = lambda _door, waiting: (waiting,),
        select: Callable[[int], None] = lambda _number: None,
    ) -> None:
        self._doors = doors
        self._enter = enter
        self._leave = leave
        self._scope = scope
        self._groups = groups
        self._select = select
        self._local = threading.local()
        self.running = 0

    def run(
        self, bodies: Sequence[Callable[[], object]], step: Callable[[Door], None], should_stop: ShouldStop
    ) -> None:
        """Run all passes to their end.

        Args:
            bodies: One call of the model each.
            step: Called after a layer has run for one pass.
            should_stop: Asked before every step.

        Raises:
            StopRequested: when asked to stop; all threads have ended.
        """
        passes = [_Pass(body) for body in bodies]
        threads = [threading.Thread(target=self._live, args=(model_pass,), daemon=True) for model_pass in passes]
        originals = [door.module.forward for door in self._doors]
        threads_before = torch.get_num_threads()
        started: list[threading.Thread] = []
        try:
            for index, door in enumerate(self._doors):
                door.module.forward = self._stopping(index, originals[index])
            for number, (thread, model_pass) in enumerate(zip(threads, passes, strict=True)):
                self._select(number)
                thread.start()
                started.append(thread)
                self._go_on(model_pass)
            torch.set_num_threads(threads_before)  # batch threads lowered the default of threads to come
            self._visit(passes, originals, step, should_stop)
        finally:
            for model_pass in passes[: len(started)]:
                model_pass.abandoned = True
                model_pass.turn.set()
            for thread in started:
                thread.join()
            for door, original in zip(self._doors, originals, strict=True):
                door.module.forward = original

    def _visit(
        self,
        passes: Sequence[_Pass],
        originals: Sequence[Callable[..., Any]],
        step: Callable[[Door], None],
        should_stop: ShouldStop,
    ) -> None:
        while doors := [model_pass.waits_at for model_pass in passes if model_pass.waits_at is not None]:
            index = min(doors)
            door = self._doors[index]
            waiting = [number for number, model_pass in enumerate(passes) if model_pass.waits_at == index]
            for group in self._groups(door, waiting):
                self._enter(door, group)
                for number in group:
                    if should_stop():
                        raise StopRequested
                    model_pass, self.running = passes[number], number
                    arguments, named = model_pass.call
                    model_pass.call = ((), {})
                    model_pass.answer = originals[index](*arguments, **named)
                    del arguments, named
                    self._go_on(model_pass)
                    step(door)
                self._leave(door, group)

    def _go_on(self, model_pass: _Pass) -> None:
        """Let one pass run until it waits at its next door or ends."""
        model_pass.handed_back.clear()
        model_pass.turn.set()
        model_pass.handed_back.wait()
        if model_pass.error is not None:
            raise model_pass.error

    def _live(self, model_pass: _Pass) -> None:
        """Body of a batch thread."""
        self._local.current = model_pass
        model_pass.turn.wait()
        model_pass.turn.clear()
        try:
            if not model_pass.abandoned:
                torch.set_num_threads(1)
                with self._scope():
                    model_pass.body()
        except _Abandoned:
            pass
        except BaseException as error:  # carried to the calling thread and raised there
            model_pass.error = error
        finally:
            model_pass.waits_at = None
            model_pass.handed_back.set()

    def _stopping(self, index: int, original: Callable[..., Any]) -> Callable[..., Any]:
        """The ``forward`` that hands its arguments to the calling thread and waits for the output."""

        def forward(*arguments: Any, **named: Any) -> Any:
            model_pass: _Pass | None = getattr(self._local, "current", None)
            if model_pass is None:  # a layer that calls another one, in the calling thread
                return original(*arguments, **named)
            model_pass.waits_at, model_pass.call = index, (arguments, named)
            model_pass.handed_back.set()
            model_pass.turn.wait()
            model_pass.turn.clear()
            if model_pass.abandoned:
                raise _Abandoned
            answer, model_pass.answer = model_pass.answer, None
            return answer

        return forward
