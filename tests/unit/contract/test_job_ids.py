"""What is meant by a part of an id."""

from __future__ import annotations

import pytest

from api_client.contract.errors import PackagingError
from api_client.contract.job_ids import find_id

IDS = ["20261129-224600-jns28g", "20261129-223500-wj6kdd", "20261128-101010-aaaaaa"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [("last", 0), ("last~0", 0), ("last~2", 2), ("jns", 0), ("28-10", 2), ("223500", 1), (IDS[1], 1)],
)
def test_a_part_that_one_id_has_means_that_one(text: str, meant: int) -> None:
    assert find_id(text, lambda: IDS) == IDS[meant]


@pytest.mark.parametrize(
    ("text", "code"),
    [("last~3", "job_not_found"), ("zzz", "job_not_found"), ("", "job_not_found"), ("20261129", "request_invalid")],
)
def test_none_and_several_are_told_apart(text: str, code: str) -> None:
    with pytest.raises(PackagingError) as caught:
        find_id(text, lambda: IDS)
    assert caught.value.code == code
    assert code == "job_not_found" or caught.value.fields["matches"] == IDS[:2]


def test_a_whole_id_is_not_looked_up() -> None:
    whole = "20200101-000000-zzzzzz"
    assert find_id(whole, lambda: pytest.fail("nothing is asked")) == whole
