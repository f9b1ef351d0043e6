"""What trainpack relies on inside other packages is there in the installed versions, and means what it is used for."""

from __future__ import annotations

import ast
import multiprocessing
import multiprocessing.forkserver
from pathlib import Path
from typing import Any

import h11
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from typer import rich_utils

from api_client.cli import foreign as cli_foreign
from api_client.console import foreign as console_foreign
from worker import foreign
from worker.models.convert.upstream import load_upstream


def _tiny_config() -> LlamaConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 32, "num_hidden_layers": 1}
    return LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(_tiny_config())


def test_a_lazy_node_shows_what_it_is_computed_from() -> None:
    upstream = load_upstream(None)
    lazy = upstream.conversion.LazyTorchTensor
    leaf = lazy.from_eager(torch.arange(6.0))
    node = leaf.reshape(2, 3)
    assert foreign.lazy_value(node) is None
    assert foreign.lazy_meta(node).shape == (2, 3)
    first, *others = foreign.lazy_arguments(node)
    assert first is leaf
    computed = foreign.lazy_function(node)(foreign.lazy_value(leaf), *others, **foreign.lazy_keywords(node))
    assert torch.equal(computed, torch.arange(6.0).reshape(2, 3))


def test_the_converter_says_which_dtypes_it_reads() -> None:
    dtypes = foreign.converted_dtypes(load_upstream(None).conversion.LazyTorchTensor)
    assert {"F64", "F32", "BF16", "F8_E4M3", "F8_E5M2", "I8"} <= dtypes
    assert not {"F8_E4M3FNUZ", "U32", "C64"} & dtypes


def test_the_writer_encodes_one_entry(tmp_path: Path) -> None:
    writer = load_upstream(None).gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("a.number", 7)
    assert foreign.packed_value(writer, writer.kv_data[0]["a.number"]) == b"\x04\0\0\0\x07\0\0\0"


def test_operations_have_the_names_that_a_dispatch_mode_sees() -> None:
    assert len(foreign.private_movements()) == 2
    assert foreign.operation_of(torch.ops.aten.view.default) is torch.ops.aten.view
    widened = foreign.widening()(torch.ones(2, dtype=torch.bfloat16), dtype=torch.float32)
    assert widened.dtype is torch.float32


def test_a_tensor_counts_its_changes() -> None:
    tensor = torch.zeros(2)
    before = foreign.version_of(tensor)
    tensor.add_(1)
    assert foreign.version_of(tensor) == before + 1


def test_a_module_hands_out_its_parameters() -> None:
    linear = torch.nn.Linear(2, 2)
    foreign.registered_parameters(linear)["bias"] = None
    assert linear.bias is None


def test_a_grouped_product_is_public_or_private() -> None:
    assert foreign.private_grouped_mm() is not None or hasattr(torch.nn.functional, "grouped_mm")


def test_a_model_has_a_dtype_plan_and_takes_conversions(model: LlamaForCausalLM) -> None:
    assert hasattr(transformers.PreTrainedModel, "_get_dtype_plan")
    assert isinstance(foreign.dtype_plan(model), dict)
    foreign.note_conversions(model, iter([]))
    named = {name: value.detach() for name, value in model.named_parameters()}
    assert transformers.core_model_loading.revert_weight_conversion(model, dict(named)).keys() == named.keys()


def test_the_conversions_of_a_model_are_kept_under_this_name() -> None:
    source = Path(transformers.core_model_loading.__file__).read_text("utf-8")
    assert "_weight_conversions" in source  # an attribute that is set, not declared: no object has it beforehand


def test_a_config_is_read_with_infinite_numbers() -> None:
    decoded = foreign.finite_config(LlamaConfig, {"limit": {"__float__": "Infinity"}, "plain": 1})
    assert decoded == {"limit": float("inf"), "plain": 1}


def test_a_model_is_built_with_plain_attention() -> None:
    config = _tiny_config()
    foreign.attend_eagerly(config)
    assert LlamaForCausalLM(config).config._attn_implementation == "eager"


def test_adapter_weights_are_cast(model: LlamaForCausalLM) -> None:
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2), autocast_adapter_dtype=False)
    assert isinstance(adapted, PeftModel)
    half = adapted.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_A").to(torch.bfloat16)
    foreign.cast_adapter(adapted)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}


def test_the_life_line_of_the_fork_server_is_taken_once() -> None:
    server: Any = multiprocessing.forkserver._forkserver
    before = server._forkserver_alive_fd
    try:
        server._forkserver_alive_fd = 12345
        assert foreign.take_life_line() == 12345
        assert foreign.take_life_line() is None
    finally:
        server._forkserver_alive_fd = before


def test_help_texts_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich_utils, "_make_rich_text", rich_utils._make_rich_text)
    cli_foreign.fold_help_texts()
    text = rich_utils._make_rich_text(text="量化", style="", markup_mode="rich")
    assert getattr(text, "overflow", None) == "fold"


def test_a_connection_takes_its_lines_strictly() -> None:
    connection = h11.Connection(h11.SERVER)
    console_foreign.take_strict_lines(connection)
    connection.receive_data(b"GET / HTTP/1.1\nhost: a\n\n")
    with pytest.raises(h11.RemoteProtocolError, match="bare line feed"):
        connection.next_event()


def test_nothing_private_of_others_is_used_elsewhere() -> None:
    """The accessors are the only place: a new use elsewhere is found here."""
    names = {
        node.attr
        for module in (foreign, cli_foreign, console_foreign)
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_")
    } - {"_parameters"}  # also a method of our own
    root = Path(foreign.__file__).parents[1]
    homes = {Path(str(module.__file__)) for module in (foreign, cli_foreign, console_foreign)}
    elsewhere = [
        f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node)}"
        for folder in ("api_client", "config", "worker")
        for path in sorted((root / folder).rglob("*.py"))
        if path not in homes
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert elsewhere == []
