"""Records what llama-quantize makes of the models of ``models.py``.

``python -m tests.golden.record_files LLAMA_QUANTIZE`` takes the path of the tool, which must be a plain x86-64 build of
llama.cpp b11434. Writes ``files.json``: per model, quant type and with or without an importance matrix the size and
SHA-256 of the file, or null where the tool refuses: for lack of a matrix, or as its blocks do not divide a row.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from api_client.contract.quant_types import QuantType
from tests.golden.models import MODELS, build_imatrix, build_model

REFUSALS = ("requires an imatrix", "no tensor type fallback is defined")
RECORD = Path(__file__).with_name("files.json")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def quantized(tool: str, folder: Path, name: str, kind: QuantType, matrix: bool) -> list[object] | None:
    """Size and digest of one output; the tool runs inside ``folder`` so that it writes the matrix's base name."""
    output = folder / "out.gguf"
    output.unlink(missing_ok=True)
    option = ["--imatrix", f"{name}.imatrix.gguf"] if matrix else []
    command = [tool, *option, f"{name}.gguf", output.name, kind.value]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        if not any(reason in done.stdout + done.stderr for reason in REFUSALS):
            raise SystemExit(f"{command}: {done.stderr[-2000:]}")
        return None
    return [output.stat().st_size, digest(output)]


def main() -> None:
    tool = str(Path(sys.argv[1]).resolve())
    record: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in MODELS:
            source = build_model(folder / f"{model}.gguf", model)
            matrix = build_imatrix(folder / f"{model}.imatrix.gguf", model)
            record[model] = {"source": digest(source), "imatrix": digest(matrix)}
            for kind in QuantType:
                record[model][kind.value] = [quantized(tool, folder, model, kind, matrix) for matrix in (False, True)]
    blocks = []
    for model, entries in record.items():
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
        blocks.append(f'"{model}": {{\n' + ",\n".join(lines) + "}")
    RECORD.write_text("{" + ",\n".join(blocks) + "}\n")


if __name__ == "__main__":
    main()
