"""What each disk needs."""

from __future__ import annotations

from api_client.contract.disk_need import DiskNeed, disk_needs

OUTPUT = DiskNeed("/o", None, 50)


def test_on_one_disk_files_are_written_once() -> None:
    assert disk_needs(40, 30, OUTPUT, None) == (DiskNeed("/o", 40, 50),)


def test_on_two_each_has_its_own() -> None:
    assert disk_needs(40, 30, OUTPUT, DiskNeed("/s", None, 39)) == (DiskNeed("/o", 30, 50), DiskNeed("/s", 40, 39))


def test_only_what_is_known_is_too_little() -> None:
    told = [DiskNeed("/o", *numbers).too_little for numbers in ((2, 1), (1, 1), (None, 1), (2, None), (1, 0))]
    assert told == [True, False, False, False, True]
