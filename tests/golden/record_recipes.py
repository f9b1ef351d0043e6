"""Records what llama-quantize makes of the models of ``models.py`` with its options on tensors' types.

``python -m tests.golden.record_recipes LLAMA_QUANTIZE``, as ``record_files``. Writes ``recipes.json``: per case the
size and SHA-256 of the file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from api_client.contract.recipe import recipe_text
from tests.golden.models import MODELS, build_imatrix, build_model, tensor_list
from tests.golden.record_files import digest

RECORD = Path(__file__).with_name("recipes.json")


class RecipeCase(NamedTuple):
    """One run: model, quant type, whether with a matrix, and the request's recipe."""

    model: str
    kind: str
    matrix: bool
    recipe: dict[str, Any]

    @property
    def label(self) -> str:
        """The key in the record."""
        return json.dumps([self.model, self.kind, self.matrix, self.recipe])

    @property
    def arguments(self) -> list[str]:
        """The recipe as llama-quantize's arguments."""
        recipe = dict(self.recipe)
        lines = recipe.pop("tensor_types", [])
        flags = [f"--{name.replace('_', '-')}" for name, value in recipe.items() if value is True]
        pairs = [(f"--{name.replace('_', '-')}", value) for name, value in recipe.items() if value is not True]
        pairs += [("--tensor-type", line) for line in lines]
        return flags + [word for pair in pairs for word in pair]


_LINES = ["blk\\.0\\.attn_(q|k)=Q8_0", "FFN_down=q6_K", "attn=iq4_nl", "^output\\.weight$=q5_1"]
CASES = [
    RecipeCase("dense", "Q4_K_M", False, {"pure": True}),
    RecipeCase("tied", "Q4_K_M", True, {"pure": True}),
    RecipeCase("dense", "Q4_K_M", True, {"tensor_types": _LINES}),
    RecipeCase("dense", "Q3_K_M", False, {"tensor_types": ["ffn_down=f16", "blk.1=bf16", "attn_v=f32"]}),
    RecipeCase("dense", "Q4_K_M", True, {"tensor_types": ["up=mxfp4", "gate=q1_0", "down=tq1_0", "q=tq2_0", "k=q2_0"]}),
    RecipeCase("dense", "Q2_K", True, {"tensor_types": ["ffn_up=iq2_xxs", "token_embd=q3_k"]}),
    RecipeCase("dense", "Q4_K_S", False, {"output_tensor_type": "q8_0", "token_embedding_type": "q5_0"}),
    RecipeCase("dense", "Q4_K_S", False, {"leave_output_tensor": True, "token_embedding_type": "bf16"}),
    RecipeCase("dense", "F16", False, {"output_tensor_type": "q4_k", "tensor_types": ["attn_q=q8_0"]}),
    RecipeCase("dense", "Q5_K_M", True, {"leave_output_tensor": True, "output_tensor_type": "q8_0"}),
    RecipeCase("tied", "Q5_K_M", False, {"output_tensor_type": "q8_0"}),
    RecipeCase("tied", "Q4_0", False, {"output_tensor_type": "q6_k", "tensor_types": ["attn_v=q8_0"]}),
    RecipeCase("tied", "Q4_0", True, {"output_tensor_type": "q6_k", "token_embedding_type": "q4_1", "pure": True}),
    RecipeCase("experts", "Q4_K_M", True, {"tensor_types": ["ffn_(gate|up)_exps=iq3_xxs", "ffn_down_exps=q5_k"]}),
    RecipeCase("experts", "IQ4_XS", True, {"pure": True, "tensor_types": ["blk.1.*_exps=q3_k"]}),
]


FILE_KIND = "Q3_K_M"
FILE_LABEL = "a recipe file for all tensors of dense"
_TURNS = ("Q4_K", "Q6_K", "IQ3_S", "Q8_0", "Q5_K", "IQ2_S", "F16")


def recipe_file() -> str:
    """A recipe as fits write them: one line for each tensor, by its whole name, types by turns."""
    named = [name for name, shape, _ in tensor_list(MODELS["dense"]) if len(shape) > 1 and "rope" not in name]
    turns = (
        ("Q4_K" if name == "token_embd.weight" else kind) for name, kind in zip(named, cycle(_TURNS), strict=False)
    )
    return recipe_text(zip(named, turns, strict=True))


def main() -> None:
    """Run the tool over all cases."""
    tool = str(Path(sys.argv[1]).resolve())
    record: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in MODELS:
            build_model(folder / f"{model}.gguf", model)
            build_imatrix(folder / f"{model}.imatrix.gguf", model)
        for case in CASES:
            matrix = ["--imatrix", f"{case.model}.imatrix.gguf"] if case.matrix else []
            command = [tool, *matrix, *case.arguments, f"{case.model}.gguf", "out.gguf", case.kind]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                raise SystemExit(f"{command}: {done.stderr[-2000:]}")
            record[case.label] = [(folder / "out.gguf").stat().st_size, digest(folder / "out.gguf")]
        (folder / "recipe.txt").write_text(recipe_file())
        arguments = ["--imatrix", "dense.imatrix.gguf", "--tensor-type-file", "recipe.txt"]
        command = [tool, *arguments, "dense.gguf", "out.gguf", FILE_KIND]
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        record[FILE_LABEL] = [(folder / "out.gguf").stat().st_size, digest(folder / "out.gguf")]
    lines = [f" {json.dumps(label)}: {json.dumps(entry)}" for label, entry in record.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
