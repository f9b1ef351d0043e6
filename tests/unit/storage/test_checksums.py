import hashlib
import subprocess
from pathlib import Path

import pytest

from api_client import digest
from api_client.digest import CHUNK_BYTES
from worker.stop import StopRequested
from worker.storage.checksums import format_checksums, parse_checksums, sha256_file, sha256_range

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_known_digests(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    assert sha256_file(path) == EMPTY
    path.write_bytes(b"abc")
    assert sha256_file(path) == ABC


def test_files_longer_than_a_chunk_and_ranges_across_chunks(tmp_path: Path) -> None:
    data = bytes(range(256)) * (CHUNK_BYTES // 256) + b"tail" * 1000
    path = tmp_path / "x"
    path.write_bytes(data)
    seen: list[int] = []
    assert digest.sha256_file(path, before_chunk=seen.append) == hashlib.sha256(data).hexdigest()
    assert seen == [0, CHUNK_BYTES, len(data)]
    assert sha256_range(path, 7, CHUNK_BYTES + 10) == hashlib.sha256(data[7 : CHUNK_BYTES + 17]).digest()
    assert sha256_range(path, len(data) - 2, 100) == hashlib.sha256(data[-2:]).digest()
    assert sha256_range(path, 0, 0).hex() == EMPTY


def test_hashing_stops_when_asked(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(StopRequested):
        sha256_file(tmp_path / "x", should_stop=lambda: True)


def test_the_sums_file_is_understood_by_sha256sum(tmp_path: Path) -> None:
    names = ["merged_model-Q4_K_M.gguf", "模型.gguf", "with  spaces", "back\\slash", "line\nbreak"]
    for name in names:
        (tmp_path / name).write_bytes(b"abc")
    text = format_checksums(dict.fromkeys(names, ABC))
    (tmp_path / "SHA256SUMS").write_text(text, "utf-8")
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert parse_checksums(text) == dict.fromkeys(names, ABC)
    assert text.splitlines()[-1] == f"{ABC}  模型.gguf"


def test_lines_of_another_format_are_passed_over() -> None:
    good = f"{ABC}  a.gguf"
    text = f"# comment\n{good}\n{ABC} b.gguf\n{ABC[:-1]}  c\n{'z' * 64}  d\n{ABC}  \n\n"
    assert parse_checksums(text) == {"a.gguf": ABC}
