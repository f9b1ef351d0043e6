"""Record ``data``: ``python imatrix_record.py --converter convert_hf_to_gguf.py --llama-imatrix TOOL``.

Trains the tokenizer (sentencepiece, 330 tokens with byte fallback and no normalisation table), builds the recorded
model, converts it with the reference converter and runs the reference tool over the text, 32 tokens a chunk, in both
file forms. Run it with the project's root on ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import sentencepiece

from tests.unit.imatrix.imatrix_models import DATA, TEXT, save_recorded_model

TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_prefix_space": False,
    "add_eos_token": False,
}


def train_tokenizer() -> None:
    """Trained from memory into memory: a model trained from files would record their paths."""
    DATA.mkdir(exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        bos_id=1,
        eos_id=2,
        unk_id=0,
        minloglevel=2,
    )
    (DATA / "tokenizer.model").write_bytes(model.getvalue())
    (DATA / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--converter", type=Path, required=True)
    parser.add_argument("--llama-imatrix", type=Path, required=True)
    arguments = parser.parse_args()
    train_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        model = save_recorded_model(Path(folder) / "model")
        gguf = Path(folder) / "model.gguf"
        convert = [sys.executable, str(arguments.converter), str(model), "--outtype", "f32", "--outfile", str(gguf)]
        subprocess.run(convert, check=True)
        (Path(folder) / "text.txt").write_text(TEXT)
        for form in ("gguf", "dat"):
            out = DATA / f"llama-imatrix.{form}"
            run = [str(arguments.llama_imatrix.resolve()), "-m", str(gguf), "-f", "text.txt", "-c", "32", "-b", "64"]
            subprocess.run([*run, "-o", str(out), "--output-format", form, "--no-ppl"], check=True, cwd=folder)


if __name__ == "__main__":
    main()
