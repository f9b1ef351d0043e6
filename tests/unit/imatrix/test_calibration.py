"""The shipped text is long and varied; a user's text is cut into chunks as llama-imatrix cuts it."""

import json
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.imatrix.imatrix_models import TEXT
from worker.models.imatrix.calibration import load_calibration
from worker.models.imatrix.tokens import tokenize_chunks


def test_the_shipped_text_is_long_varied_and_does_not_repeat_itself() -> None:
    text = load_calibration().text
    assert len(text.encode()) >= 64 * 1024
    letters = Counter(unicodedata.name(char, "?").split()[0] for char in text if char.isalpha())
    scripts = {"LATIN", "CJK", "CYRILLIC", "ARABIC", "HIRAGANA", "HANGUL", "GREEK", "DEVANAGARI", "THAI"}
    assert {script for script in scripts if letters[script] > 150} == scripts
    assert {"def ", "fn ", "SELECT ", "#include", "<html", '"sensors": ['} == {
        mark for mark in ("def ", "fn ", "SELECT ", "#include", "<html", '"sensors": [') if mark in text
    }
    lines = [line for line in text.splitlines() if len(line) > 40]
    assert len(set(lines)) == len(lines)
    words = text.split()
    windows = Counter(zip(*(words[start:] for start in range(6)), strict=False))
    assert sum(count - 1 for count in windows.values()) < 0.002 * len(windows)


def test_a_file_of_the_users_is_named_by_its_base_name_only(tmp_path: Path) -> None:
    path = tmp_path / "support tickets.txt"
    path.write_bytes("naïve ".encode() + b"\xff\xfe end")
    calibration = load_calibration(path)
    assert calibration.name == "support tickets.txt"
    assert calibration.text == "naïve \ufffd\ufffd end"


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(PackagingError) as caught:
            load_calibration(path)
        assert caught.value.code is ErrorCode.REQUEST_INVALID
        assert str(path) in caught.value.message


def test_each_chunk_begins_with_the_begin_token_in_place_of_its_first(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    with_begin = model_dir("llama")
    without = tmp_path / "tokenizer"
    without.mkdir()
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(with_begin / file, without / file)
    config = json.loads((without / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    (without / "tokenizer_config.json").write_text(json.dumps(config))
    plain = tokenize_chunks(TEXT, without, 16, 3).flatten().tolist()
    chunks = tokenize_chunks(TEXT, with_begin, 16, 3)
    assert chunks[:, 0].tolist() == [1, 1, 1]
    shifted = [1, *plain[:47]]  # the begin token goes before the text ...
    shifted[16] = shifted[32] = 1  # ... and over the first token of the later chunks
    assert chunks.flatten().tolist() == shifted
    assert 1 not in plain


def test_all_whole_chunks_are_used_and_no_more_than_asked_for(model_dir: Callable[[str], Path]) -> None:
    everything = tokenize_chunks(TEXT, model_dir("llama"), 64, None)
    assert everything.shape[0] > 10
    assert tokenize_chunks(TEXT, model_dir("llama"), 64, 4).tolist() == everything[:4].tolist()
    assert tokenize_chunks(TEXT, model_dir("llama"), 64, 10_000).shape == everything.shape


def test_special_tokens_written_out_in_the_text_are_text(model_dir: Callable[[str], Path]) -> None:
    chunks = tokenize_chunks("</s> <unk> " * 20, model_dir("llama"), 32, None)
    assert 2 not in chunks.flatten().tolist()


def test_loading_and_checking_matrices_needs_no_torch() -> None:
    import subprocess

    names = ("load", "validate", "gguf_form", "calibration")
    modules = ", ".join(f"worker.models.imatrix.{name}" for name in names)
    code = f"import sys; import {modules}; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
