"""Filling the cache before anybody waits: for a container image, and beside a worker."""

import subprocess
import sys
from pathlib import Path

import pytest

from worker.models.gguf.types import GGMLType
from worker.models.kernels.catalogue import KERNELS
from worker.models.kernels.compiler import assembly, keep
from worker.models.kernels.precompile import COMMON_TYPES, kernels_of, main
from worker.models.kernels.processor import Level, is_x86, this_processor


def names(cache: Path) -> list[str]:
    return sorted(path.name.rsplit("-", 1)[0] for path in cache.iterdir())


def test_an_image_has_kernels_for_every_processor(tmp_path: Path) -> None:
    """And the one that is here then finds its own: nothing is compiled any more."""
    assert main(["--cache", str(tmp_path), "--types", "Q8_0"]) == 0
    kept = names(tmp_path)
    assert "q8_0-ptx" in kept
    if is_x86():
        assert {"q8_0-avx2", "q8_0-avx512"} <= set(kept)
        assert kept.count("row_means") == len({this_processor(), *(level.value for level in Level)})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    list(keep([KERNELS[GGMLType.Q8_0, False]], tmp_path, this_processor()))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_the_warm_up_is_for_this_processor_only_and_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, os; from worker.models.kernels.precompile import main; main(sys.argv[1:]);"
        "print(os.nice(0), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "--cache", str(tmp_path), "--warm-up", "--types", "Q8_0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "19 False"
    expected = [f"q8_0-{this_processor().permutes.value}", "row_means"]
    assert [name for name in names(tmp_path) if not name.startswith(("widen", "narrow"))] == expected


def test_the_default_quant_type_comes_first_in_the_warm_up() -> None:
    kernels = kernels_of(COMMON_TYPES)
    assert [kernel.name for kernel in kernels[:2]] == ["q4_k", "q6_k"]
    assert len({kernel.name for kernel in kernels}) == len(kernels) == 2 * len(COMMON_TYPES) - 1


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--cache", str(tmp_path / "file")]) == 1
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.skipif(not is_x86(), reason="levels are of x86-64")
@pytest.mark.parametrize("level", list(Level))
def test_code_for_a_level_fuses_nothing_and_is_vectorised(level: Level) -> None:
    text = assembly(KERNELS[GGMLType.Q4_K, False], level.value)
    assert not any(name in text for name in ("fmadd", "fnmadd", "fmsub", "fnmsub"))
    assert text.count("vmulps") > 50 > text.count("vmulss")
