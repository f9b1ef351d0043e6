"""Small models with prediction layers (MTP, NextN), under the names that their families' checkpoints give them.

transformers saves none, so they are added to what it saves: a copy of an ordinary layer, and the parts that join it to
the model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.unit.convert.convert_samples import save_model, upstream_convert
from worker.models.convert.upstream import load_upstream

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Family:
    """How a family names prediction layers.

    Attributes:
        block: Where layer ``{i}``, counted from 0, lies; ``{n}`` counts on after the ordinary layers.
        like: The ordinary layer that it is a copy of.
        attends_like: The ordinary layer whose attention it has instead.
        joins: What joins it to the model: name of a tensor -> its shape where the model is 32 wide.
        announces: What the config says of it.
        switches: Upstream's class takes ``--no-mtp``.
        layers: How many there are.
        settings: Changes to its sample, so that llama.cpp runs it.
    """

    block: str
    like: int
    joins: dict[str, tuple[int, ...]]
    announces: dict[str, int]
    switches: bool = False
    layers: int = 1
    attends_like: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


_ROW, _PAIR = (32,), (32, 64)
_APPENDED = {
    f"model.layers.{{n}}.{part}.weight": shape
    for part, shape in {"eh_proj": _PAIR, "enorm": _ROW, "hnorm": _ROW, "shared_head.norm": _ROW}.items()
}
_MTP = {
    f"mtp.{part}.weight": shape
    for part, shape in {
        "fc": _PAIR, "pre_fc_norm_embedding": _ROW, "pre_fc_norm_hidden": _ROW, "norm": _ROW
    }.items()
}  # fmt: skip
_NEXTN, _NUMBER = {"num_nextn_predict_layers": 1}, {"mtp_num_hidden_layers": 1}
FAMILIES = {
    "glm4-moe": Family("model.layers.{n}.", 1, _APPENDED, _NEXTN),
    "glm4-moe-lite": Family("model.layers.{n}.", 1, _APPENDED, _NEXTN, switches=True),
    "exaone-moe": Family("mtp.layers.{i}.", 0, _MTP, _NEXTN),
    "qwen3-next": Family("mtp.layers.{i}.", 1, _MTP, {}, switches=True),
    "qwen3.5": Family("mtp.layers.{i}.", 1, _MTP, _NUMBER, switches=True, settings={"head_dim": 32}),
    "mimo2": Family(
        "model.mtp.layers.{i}.",
        0,
        {
            f"model.mtp.layers.{{i}}.{part}.weight": shape
            for part, shape in {"eh_proj": _PAIR, "enorm": _ROW, "hnorm": _ROW, "final_layernorm": _ROW}.items()
        },
        {},
        layers=3,
        attends_like=1,
    ),
    # upstream leaves DeepSeek-V3's out of every file
    "deepseek-v3": Family("model.layers.{n}.", 1, _APPENDED, _NEXTN),
}
NO_PLACE = ("deepseek-v3", "glm4-moe-lite", "qwen3-next")
"""Families whose layers the pinned upstream has no place for: DeepSeek-V3's it leaves out, on others it gives up."""
KEPT = [name for name in FAMILIES if name not in NO_PLACE]


def save_predicting(name: str, directory: Path, **changes: Any) -> Path:
    """A model of random weights with its prediction layers."""
    save_model(name, directory, **{**FAMILIES[name].settings, **changes})
    add_draft_head(name, directory)
    return directory


def add_draft_head(name: str, directory: Path, *, layers: int | None = None, seed: int = 11) -> None:
    """Put prediction layers into a model's own weight file, and announce all that the family has."""
    family = FAMILIES[name]
    torch.manual_seed(seed)
    tensors = load_file(directory / WEIGHTS)
    config = json.loads((directory / "config.json").read_text())
    ordinary, wider = config["num_hidden_layers"], config["hidden_size"] // 32
    copied: dict[str, torch.Tensor] = {}
    attends_like = family.like if family.attends_like is None else family.attends_like
    for like, attends in ((family.like, False), (attends_like, True)):
        prefix = f"model.layers.{like}."
        own = [key for key in tensors if key.startswith(prefix) and (".self_attn." in key) is attends]
        copied |= {key.removeprefix(prefix): tensors[key] for key in own}
    for number in range(family.layers if layers is None else layers):
        places = {"i": number, "n": ordinary + number}
        for part, tensor in copied.items():
            spread = torch.randn(tensor.shape).to(tensor.dtype) * 0.01
            tensors[family.block.format(**places) + part] = tensor + spread
        for join, shape in family.joins.items():
            tensors[join.format(**places)] = (torch.randn([extent * wider for extent in shape]) * 0.1).to(
                torch.bfloat16
            )
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    change_config(directory, **family.announces)


def make_agreeing(directory: Path) -> None:
    """Have a Qwen3.5 write one token for ever, and its prediction layer know: every draft is accepted."""
    tensors = load_file(directory / WEIGHTS)
    wide = tensors["model.embed_tokens.weight"].shape[1]
    torch.manual_seed(13)
    vector = torch.randn(wide).sign().to(torch.bfloat16)
    tensors["model.embed_tokens.weight"][:] = vector
    tensors["lm_head.weight"].zero_()
    tensors["lm_head.weight"][100] = vector
    for key, tensor in tensors.items():
        if key.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "norm.weight")) or "norm_" in key:
            tensor.zero_()
    tensors["mtp.fc.weight"] = torch.eye(wide, 2 * wide).to(torch.bfloat16)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def without_draft_head(name: str, source: Path, directory: Path, *, announced: bool = True) -> Path:
    """A copy of a model as transformers would save it after training: its prediction layers gone."""
    shutil.copytree(source, directory)
    tensors = load_file(directory / WEIGHTS)
    kept = {key: tensor for key, tensor in tensors.items() if not is_predicting(name, key, directory)}
    save_file(kept, directory / WEIGHTS, metadata={"format": "pt"})
    if not announced:
        change_config(directory, **dict.fromkeys(FAMILIES[name].announces, 0))
    return directory


def is_predicting(name: str, key: str, directory: Path) -> bool:
    """Whether a tensor belongs to the prediction layers of a family, said here independently of the service."""
    if "mtp." in FAMILIES[name].block:
        return "mtp." in key
    ordinary = json.loads((directory / "config.json").read_text())["num_hidden_layers"]
    number = re.match(r"model\.layers\.(\d+)\.", key)
    return number is not None and int(number[1]) >= ordinary


def change_config(directory: Path, **changes: Any) -> None:
    """Change ``config.json``."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def upstream_without_head(name: str, directory: Path, out: Path, monkeypatch: Any, **options: Any) -> Path:
    """What upstream makes of a model without its prediction layers: with ``--no-mtp`` where the class takes it."""
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    model_class = load_upstream().model_class(architecture)
    with monkeypatch.context() as patch:
        if FAMILIES[name].switches:
            patch.setattr(model_class, "no_mtp", True)
            return upstream_convert(directory, out, **options)
        if hasattr(model_class, "_n_nextn"):  # MiMo's, a constant that upstream has no switch for
            patch.setattr(model_class, "_n_nextn", 0)
        place = out.parent / f"stripped-{out.stem}" / directory.name
        place.parent.mkdir()
        return upstream_convert(without_draft_head(name, directory, place, announced=False), out, **options)
