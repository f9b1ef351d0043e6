"""The tap recognises weights by their storage, whichever product they take part in, and sums what meets them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worker.models.imatrix.tap import ActivationTap


@pytest.fixture
def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.arange(20.0).reshape(5, 4), requires_grad=False)


@pytest.fixture
def experts() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.arange(24.0).reshape(2, 3, 4), requires_grad=False)


X = torch.tensor([[1.0, 0.0, -2.0, 3.0], [2.0, 1.0, 0.0, 0.5]])
SQUARES = [5.0, 1.0, 4.0, 9.25]


def gather(run: Any, **parameters: torch.Tensor) -> Any:
    tap = ActivationTap()
    tap.register(parameters.items())
    with torch.no_grad(), tap:
        run()
    return tap.gathered


@pytest.mark.parametrize(
    "product",
    [
        torch.nn.functional.linear,
        lambda x, w: torch.nn.functional.linear(input=x, weight=w, bias=torch.ones(5)),
        lambda x, w: x @ w.T,
        lambda x, w: x.matmul(w.t()),
        lambda x, w: torch.mm(x, w.transpose(0, 1)),
        lambda x, w: torch.addmm(torch.zeros(5), x, w.T),
        lambda x, w: w @ x.T,
        lambda x, w: torch.matmul(w, x.T.unsqueeze(0)),
        lambda x, w: torch.nn.functional.linear(x, w[:3]),
        lambda x, w: torch.nn.functional.linear(x.reshape(1, 2, 4), w),
    ],
)
def test_every_kind_of_product_counts_the_rows_and_sums_the_squares_of_each_channel(
    product: Callable[..., torch.Tensor], weight: torch.nn.Parameter
) -> None:
    entry = gather(lambda: product(X, weight), w=weight)["w"]
    assert entry.axis == -1
    assert entry.sums.tolist() == [SQUARES]
    assert entry.counts.tolist() == [2]


def test_a_weight_stored_input_first_is_summed_along_its_first_axis() -> None:
    weight = torch.nn.Parameter(torch.arange(20.0).reshape(4, 5))
    entry = gather(lambda: torch.addmm(torch.zeros(5), X, weight), w=weight)["w"]
    assert (entry.axis, entry.sums.tolist()) == (-2, [SQUARES])


def test_sums_and_counts_add_up_over_calls(weight: torch.nn.Parameter) -> None:
    entry = gather(lambda: [torch.nn.functional.linear(X, weight) for _ in range(3)], w=weight)["w"]
    assert entry.sums.tolist() == [[3 * value for value in SQUARES]]
    assert entry.counts.tolist() == [6]


def test_an_input_changed_in_place_between_two_products_is_summed_again(weight: torch.nn.Parameter) -> None:
    other = torch.nn.Parameter(torch.ones(3, 4))

    def run() -> None:
        x = X.clone()
        torch.nn.functional.linear(x, weight)
        x.mul_(2)
        torch.nn.functional.linear(x, other)

    gathered = gather(run, w=weight, o=other)
    assert gathered["w"].sums.tolist() == [SQUARES]
    assert gathered["o"].sums.tolist() == [[4 * value for value in SQUARES]]


@pytest.mark.parametrize("index", [1, torch.tensor(1)])
def test_one_expert_of_a_fused_weight_is_found_by_its_offset(
    index: int | torch.Tensor, experts: torch.nn.Parameter
) -> None:
    entry = gather(lambda: torch.nn.functional.linear(X, experts[index]), w=experts)["w"]
    assert entry.sums.tolist() == [[0.0] * 4, SQUARES]
    assert entry.counts.tolist() == [0, 2]


def test_a_batched_product_counts_only_rows_that_the_router_left_non_zero(experts: torch.nn.Parameter) -> None:
    batched = torch.stack([X, torch.cat([torch.zeros(1, 4), X[1:]])])
    entry = gather(lambda: torch.bmm(batched, experts.transpose(1, 2)), w=experts)["w"]
    assert entry.sums.tolist() == [SQUARES, [4.0, 1.0, 0.0, 0.25]]
    assert entry.counts.tolist() == [2, 1]


def test_a_grouped_product_assigns_sorted_rows_to_experts() -> None:
    weight = torch.nn.Parameter(torch.randn(2, 16, 16))
    rows = torch.randn(5, 16)
    ends = torch.tensor([2, 5], dtype=torch.int32)
    entry = gather(lambda: torch.nn.functional.grouped_mm(rows, weight.transpose(1, 2), offs=ends), w=weight)["w"]
    assert entry.axis == -1
    assert entry.counts.tolist() == [2, 3]
    torch.testing.assert_close(entry.sums[1], rows[2:].square().sum(0).double())


def test_what_is_no_product_with_a_known_weight_is_left_alone(weight: torch.nn.Parameter) -> None:
    unknown = torch.nn.Parameter(torch.ones(5, 4))

    def run() -> None:
        torch.nn.functional.linear(X, unknown)
        torch.nn.functional.linear(X, weight + 1)
        torch.nn.functional.linear(X[:, :2], weight[:, :2])
        torch.nn.functional.linear(X[:, 2:], weight[:, 2:])
        torch.matmul(X, X.T)

    assert gather(run, w=weight) == {}


def test_forgotten_parameters_are_watched_no_longer_but_keep_what_was_gathered(weight: torch.nn.Parameter) -> None:
    tap = ActivationTap()
    tap.register([("layer.0.w", weight), ("layer.0.norm", torch.ones(4))])
    with torch.no_grad(), tap:
        torch.nn.functional.linear(X, weight)
        tap.forget("layer.0.")
        torch.nn.functional.linear(X, weight)
    assert tap.gathered["layer.0.w"].counts.tolist() == [2]


def test_low_precision_inputs_are_summed_in_high_precision() -> None:
    weight = torch.nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    ones = torch.ones(3000, 1, dtype=torch.bfloat16)
    entry = gather(lambda: torch.nn.functional.linear(ones, weight), w=weight)["w"]
    assert entry.sums.tolist() == [[3000.0]]
