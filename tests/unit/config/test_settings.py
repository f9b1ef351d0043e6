"""Settings from the environment: what they are read as, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.ledger.address import stack_file
from config.roots import Roots
from config.settings import load_settings


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("written", ["~/state", "state"])
def test_a_path_means_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str) -> None:
    for name in ("HOME", "SCRATCH_DIR", "TEMPLATES_FILE", "KERNEL_CACHE_DIR", "LLAMA_CPP_DIR"):
        monkeypatch.setenv(f"TRAINPACK_{name}", written)
    monkeypatch.setenv("TRAINPACK_ALLOWED_ROOTS", f"{written}:/data")
    settings, whole = load_settings(), tmp_path / "state"
    assert {
        settings.home,
        settings.scratch_dir,
        settings.templates_file,
        settings.kernels_dir,
        settings.llama_cpp_dir,
        stack_file().absolute().parent,
    } == {whole}
    assert settings.allowed_roots == Roots.only(whole, Path("/data"))


@pytest.mark.parametrize(
    ("name", "value", "fact"),
    [
        ("LABEL_LIMITS", "{", "TRAINPACK_LABEL_LIMITS: is not JSON"),
        ("LABEL_LIMITS", "[]", "TRAINPACK_LABEL_LIMITS: "),
        ("LABEL_LIMITS", '{"team": "many"}', "TRAINPACK_LABEL_LIMITS.TEAM: "),
        ("HOME", "~nobody-of-this-name/x", "TRAINPACK_HOME: has an unknown home directory"),
        ("SLOTS", "", "TRAINPACK_SLOTS: "),
        ("LEASE_S", "1", "three heartbeats"),
        ("SLOT", "1", "unknown setting TRAINPACK_SLOT; did you mean TRAINPACK_SLOTS?"),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, fact: str
) -> None:
    monkeypatch.setenv(f"TRAINPACK_{name}", value)
    with pytest.raises(PackagingError) as refused:
        load_settings()
    assert refused.value.code is ErrorCode.SETTINGS_INVALID
    assert fact in refused.value.message


def test_limits_of_labels_are_read_from_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINPACK_LABEL_LIMITS", '{"team": 2}')
    assert load_settings().label_limits == {"team": 2}
    assert load_settings({}, label_limits={"team": 3}).label_limits == {"team": 3}
