"""The help in the language of the locale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import typer.main

from api_client.cli.app import build_app
from api_client.cli.help_zh import HELP_ZH
from api_client.cli.translate import exchange, untranslated
from api_client.words.phrases import PHRASES
from tests.unit.cli.conftest import Ran


def test_every_help_text_has_a_translation() -> None:
    """Add what is missing to ``api_client/cli/help_zh.py``, by paragraph."""
    assert untranslated(typer.main.get_command(build_app())) == []


def test_no_translation_is_of_a_text_that_is_gone() -> None:
    seen: set[str] = {"Arguments", "Commands", "Options"}

    def note(text: str) -> str:
        seen.update(paragraph.strip() for paragraph in text.split("\n\n"))
        return text

    exchange(typer.main.get_command(build_app()), note)
    assert {*HELP_ZH} - seen == set()


@pytest.mark.parametrize("locale", ["zh_CN.UTF-8", "zh_TW.UTF-8"])
def test_help_follows_the_locale(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, locale: str) -> None:
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LC_MESSAGES", locale)
    listed = cli("--help").out
    assert "将训练完成的模型打包为 GGUF 文件" in listed
    assert "─ 作业 ─" in listed
    one = cli("watch", "-h").out
    assert "实时查看作业" in one
    assert "─ 选项 ─" in one
    # And back again in the same process.
    monkeypatch.setenv("LC_MESSAGES", "en_GB.UTF-8")
    assert "─ Options ─" in cli("watch", "--help").out


def test_json_is_the_same_in_both(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    english = cli("quant-types", "--json").out
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert cli("quant-types", "--json").out == english


def test_phrases_keep_their_placeholders() -> None:
    import string

    for key, (english, chinese) in PHRASES.items():
        fields = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, chinese)]
        assert fields[0] == fields[1], key
