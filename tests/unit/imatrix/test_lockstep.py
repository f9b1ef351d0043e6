"""Passes stop at the door of each layer, go through one layer at a time, and always end."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from worker.models.imatrix.lockstep import Lockstep, find_doors
from worker.stop import StopRequested


class Layer(torch.nn.Module):
    def __init__(self, log: list[Any], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name

    def forward(self, value: int, *, number: int) -> int:
        self.log.append((self.name, number, threading.current_thread() is threading.main_thread()))
        if (self.name, number) == ("c", 7):
            raise ArithmeticError("seven")
        return value + 1


class Model(torch.nn.Module):
    def __init__(self, order: list[Any]) -> None:
        super().__init__()
        self.log: list[Any] = []
        self.layers = torch.nn.ModuleList([Layer(self.log, name) for name in "abc"])
        self.order = order

    def forward(self, number: int) -> None:
        value = torch.tensor(0)
        for index in self.order:
            value = self.layers[index](value, number=number)
        self.log.append(("end", number, int(value)))


def run(
    model: Any,
    numbers: Any,
    step: Callable[..., Any] = lambda _door: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    doors = find_doors(model)

    def note(what: str) -> Callable[..., Any]:
        return lambda door, _passes: model.log.append((what, door.name))

    lockstep = Lockstep(doors, note("enter"), note("leave"), nullcontext)
    lockstep.run([partial(model, n) for n in numbers], step, should_stop)


def test_every_pass_goes_through_a_layer_before_any_goes_through_the_next() -> None:
    model = Model([0, 1, 2])
    run(model, [0, 1])
    assert model.log == [
        ("enter", "layers.0"), ("a", 0, True), ("a", 1, True), ("leave", "layers.0"),
        ("enter", "layers.1"), ("b", 0, True), ("b", 1, True), ("leave", "layers.1"),
        ("enter", "layers.2"), ("c", 0, True), ("end", 0, 3), ("c", 1, True), ("end", 1, 3), ("leave", "layers.2"),
    ]  # fmt: skip


def test_a_layer_that_is_used_twice_is_entered_twice_and_one_that_is_skipped_never() -> None:
    model = Model([0, 2, 0])
    run(model, [4])
    assert [entry for entry in model.log if entry[0] in ("enter", "end")] == [
        ("enter", "layers.0"),
        ("enter", "layers.2"),
        ("enter", "layers.0"),
        ("end", 4, 3),
    ]


def test_an_error_in_a_layer_or_between_layers_is_raised_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(ArithmeticError, match="seven"):
        run(Model([0, 1, 2]), [5, 6, 7, 8])
    with pytest.raises(IndexError):
        run(Model([0, 9]), [1, 2])
    assert threading.active_count() == before


def test_a_stop_is_heeded_between_steps_and_leaves_the_model_as_it_was() -> None:
    model = Model([0, 1, 2])
    steps: list[Any] = []
    before, cores = threading.active_count(), torch.get_num_threads()
    with pytest.raises(StopRequested):
        run(model, [0, 1, 2], steps.append, should_stop=lambda: len(steps) == 4)
    assert [door.name for door in steps] == ["layers.0"] * 3 + ["layers.1"]
    assert threading.active_count() == before
    assert torch.get_num_threads() == cores
    model.log.clear()
    model(9)
    assert model.log[-1] == ("end", 9, 3)


def test_doors_are_the_members_of_the_outermost_lists() -> None:
    inner = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    block = torch.nn.Module()
    block.experts = inner
    model = torch.nn.Module()
    model.tower = torch.nn.Module()
    model.tower.blocks = torch.nn.ModuleList([block, torch.nn.Identity()])
    model.single = torch.nn.ModuleList([torch.nn.Identity()])
    assert [door.name for door in find_doors(model)] == ["tower.blocks.0", "tower.blocks.1"]
