"""Full fine-tunes: tokenizer and template are the checkpoint's, and what a trainer sharded for itself is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from tests.harness import run_stages
from tests.tiny import VOCABULARY, tiny_base
from tests.unit.stages.conftest import TinyRun
from worker.models.gguf.reader import open_gguf

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open
FULL = {"template": "quantize_base", "quant_types": ["Q8_0"]}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def tuned(tiny: TinyRun, dtype: torch.dtype) -> Path:
    """A checkpoint of whole weights with a token more and a template of its own."""
    checkpoint = tiny_base(tiny.run / "checkpoint-30", vocab_size=VOCABULARY + 1, dtype="float32")
    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: value.to(dtype) for name, value in weights.items()}, checkpoint / "model.safetensors")
    (checkpoint / "added_tokens.json").write_text(json.dumps({"<|turn|>": VOCABULARY}))
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return checkpoint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_tokenizer_and_template_are_the_checkpoint_s(tiny: TinyRun, tmp_path: Path, dtype: torch.dtype) -> None:
    run_stages(tiny.request(checkpoint=tuned(tiny, dtype), **FULL), tmp_path / "scratch")
    (file,) = tiny.output.glob("*-Q8_0.gguf")
    with open_gguf(file) as gguf:
        assert gguf.metadata["tokenizer.chat_template"].value == TEMPLATE
        assert gguf.metadata["tokenizer.ggml.tokens"].value[VOCABULARY] == "<|turn|>"
        assert gguf.by_name["token_embd.weight"].shape[1] == VOCABULARY + 1


@pytest.mark.parametrize(
    ("part", "command"),
    [
        ("global_step30/mp_rank_00_model_states.pt", "python {0}/zero_to_fp32.py {0} {0} --safe_serialization"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights {0}/pytorch_model_fsdp_0 {0}"),
    ],
)
@pytest.mark.parametrize("place", ["checkpoint", "base_model"])
def test_a_sharded_tune_is_refused_with_the_command_that_joins_it(
    tiny: TinyRun, tmp_path: Path, part: str, command: str, place: str
) -> None:
    sharded = tiny.run / "checkpoint-30"
    (sharded / part).parent.mkdir(parents=True)
    (sharded / part).write_bytes(b"x")
    given = {"checkpoint": sharded} if place == "checkpoint" else {"base_model": sharded, "checkpoint": None}
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(**given, **FULL), tmp_path / "scratch", until=StageName.PREPARE)
    wanted = ErrorCode.CHECKPOINT_NOT_FOUND if place == "checkpoint" else ErrorCode.BASE_MODEL_INVALID
    assert refused.value.code is wanted
    assert command.format(sharded) in (refused.value.remedy or "")
