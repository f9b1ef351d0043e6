"""The price list and its JSON form."""

from __future__ import annotations

import pytest

from worker.models.fit.prices import Prices, TensorPrice

LIST = Prices(
    (
        TensorPrice("blk.0.ffn_up.weight", (256, 8), {"Q4_K": 1152, "F16": 4096}, {"Q4_K": 1 / 3, "F16": 0.0}),
        TensorPrice("output.weight", (256, 4), {"Q6_K": 840}, {"Q6_K": 0.25}, {"Q6_K": 0.01}),
    )
)


def test_json_gives_the_same_list_back() -> None:
    text = LIST.to_json()
    assert Prices.from_json(text) == LIST
    assert Prices.from_json(text).to_json() == text


ROW = '{"name": "a", "shape": [1], "bytes": {"F16": 2}, "kld": %s, "error": {}}'


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": 1, "tensors": [{"name": "a"}]}',
        '{"version": 1, "tensors": [%s]}' % (ROW % "{}"),
        '{"version": 1, "tensors": [%s]}' % (ROW % '{"F16": NaN}'),
    ],
)
def test_other_documents_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="price"):
        Prices.from_json(text)
