from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from api_client.console.language import accepted_language
from api_client.console.pages import texts
from api_client.console.pages.texts import FIELD_TEXTS, TEXTS, text
from api_client.console.roles import Role
from api_client.contract.job import ArtifactKind, StageName
from api_client.contract.quant_types import QUANT_TYPES
from api_client.contract.recommend import TARGETS
from api_client.contract.task import TaskStatus
from api_client.contract.templates import SWITCHES
from api_client.runs.checkpoints import EmptyReason
from api_client.words.language import Language
from api_client.words.phrases import PHRASES

HERE = Path(texts.__file__).parent
STYLE = (HERE / "static" / "console.css").read_text()


def test_every_text_has_both_languages_with_the_same_placeholders() -> None:
    for key, (english, chinese) in TEXTS.items():
        assert english, key
        assert chinese, key
        names = [{name for _, name, _, _ in string.Formatter().parse(part) if name} for part in (english, chinese)]
        assert names[0] == names[1], key


def test_no_text_of_the_pages_hides_a_phrase_that_both_faces_have() -> None:
    assert TEXTS.keys() & PHRASES.keys() == set()


def test_every_key_of_the_templates_is_known() -> None:
    for template in (HERE / "templates").glob("*.html"):
        for key in re.findall(r"\bt\(\"([a-z_0-9.]+)\"[,)]", template.read_text()):
            assert key in TEXTS or key in FIELD_TEXTS or key in PHRASES, f"{template.name}: {key}"


def test_every_value_of_the_contract_has_a_word() -> None:
    keys = [
        *(f"stage.{name.value}" for name in StageName),
        *(f"artifact.{kind.value}" for kind in ArtifactKind),
        *(f"role.{role.value}" for role in Role),
        *(f"choice.task.status.{status.value}" for status in TaskStatus),
        *(f"field.options.{name}" for name in SWITCHES),
        *(f"empty.{reason.value}" for reason in EmptyReason),
        *(f"family.{info.family}" for info in QUANT_TYPES.values()),
        *(f"target.{name}" for name in TARGETS),
    ]
    assert [key for key in keys if not text(Language.ZH, key)] == []


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB, zh;q=0.9", "en"),
        ("fr, de;q=0.9, zh-Hant;q=0.2", "zh"),
        ("zh;q=0, en;q=0.1", "en"),
        ("zh;q=nonsense, fr", "en"),
        ("*", "en"),
    ],
)
def test_accepted_language(header: str, expected: str) -> None:
    assert accepted_language(header) == expected


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    for path in (*HERE.glob("templates/*"), *HERE.glob("static/*")):
        content = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", content), path.name
        assert not re.search(r"\sstyle=|<style|\son[a-z]+=|<script(?![^>]*src=)|javascript:", content), path.name
        assert "|safe" not in content.replace(" ", "")


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", blocks[scheme]))
    pairs = [(name, ground) for name in ("text", "muted", "accent") for ground in ("canvas", "surface", "raised")]
    pairs += [(name, f"{name}-soft") for name in ("good", "bad", "warn", "wait", "accent")]
    pairs += [(name, "surface") for name in ("good", "bad", "warn")]
    pairs += [("accent-text", "accent"), ("text", "bad-soft"), ("text", "warn-soft"), ("muted", "bad-soft")]
    weak = {pair: round(contrast(found[pair[0]], found[pair[1]]), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}
    assert contrast(found["control"], found["surface"]) >= 3
