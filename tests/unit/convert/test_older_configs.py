"""The same weights under a config saved by transformers 4 and by transformers 5 make the same file.

A tenth of the architectures each day, as ``test_field`` chooses them. The configs are by
``tests/field/older_configs.py``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import PackagingError
from tests.field.architectures import NotBuiltError, chosen, save_convertible
from tests.unit.convert.test_field import DAY
from worker.models.convert.pipeline import convert
from worker.models.gguf.reader import open_gguf

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open

OLDER: dict[str, Any] = json.loads((Path(__file__).parents[2] / "field/data/configs-4.57.3.json").read_text("utf-8"))
_ENDS = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"}
_PERIOD = {"modern-bert.attention.sliding_window_pattern"}
# architecture -> keys of the file that may differ
OTHER_KEYS: dict[str, set[str]] = {
    # the two releases have another default for what nobody said
    "CohereForCausalLM": {"command-r.rope.freq_base"},
    "FalconH1ForCausalLM": {"falcon-h1.rope.freq_base"},
    "Olmo3ForCausalLM": {"olmo2.rope.freq_base"},
    # transformers 4 leaves out of a part what is its class's default, which llama.cpp has as well
    **dict.fromkeys(("LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration"), _ENDS),
    "VoxtralForConditionalGeneration": _ENDS,
    "Gemma3ForConditionalGeneration": {"tokenizer.ggml.padding_token_id"},
    # said as a number by the one, as kinds of layers by the other, which llama.cpp assumes
    "ModernBertModel": _PERIOD,
    "ModernBertForMaskedLM": _PERIOD,
    "ModernBertForSequenceClassification": _PERIOD,
}


def with_older_config(base: Path, directory: Path, architecture: str) -> Path:
    """The same model with the config of transformers 4; the vocabulary's size is the tokenizer's here."""
    shutil.copytree(base, directory)
    newer = json.loads((base / "config.json").read_text("utf-8"))
    older = OLDER[architecture]
    for one, other in ((older, newer), (older.get("text_config"), newer.get("text_config"))):
        if isinstance(one, dict) and isinstance(other, dict):
            one |= {key: other[key] for key in ("vocab_size", "vocab_size_per_layer_input") if key in other}
    (directory / "config.json").write_text(json.dumps(older), "utf-8")
    return directory


@pytest.mark.parametrize("architecture", [name for name in chosen(DAY) if name in OLDER])
def test_a_config_of_transformers_4_makes_the_same_file(tmp_path: Path, architecture: str) -> None:
    print(f"{architecture}, chosen for TRAINPACK_FIELD_DAY={DAY}")
    try:
        save_convertible(architecture, tmp_path)
    except NotBuiltError as error:
        pytest.skip(str(error))
    except PackagingError as error:
        pytest.skip(f"refused in either form, as test_field says: {error.code}")
    older = with_older_config(tmp_path / "base", tmp_path / "older" / "base", architecture)
    convert(older, tmp_path / "older.gguf", gguf_dtype="f32")
    with open_gguf(tmp_path / "base.gguf") as new, open_gguf(tmp_path / "older.gguf") as old:
        names = [*new.metadata, *(name for name in old.metadata if name not in new.metadata)]
        keys = {name for name in names if new.metadata.get(name) != old.metadata.get(name)}
        assert keys <= OTHER_KEYS.get(architecture, set()), keys
        assert [tensor.name for tensor in new.tensors] == [tensor.name for tensor in old.tensors]
        for one, other in zip(new.tensors, old.tensors, strict=True):
            assert (one.type, one.shape) == (other.type, other.shape), one.name
            assert (new.tensor_bytes(one) == old.tensor_bytes(other)).all(), one.name
