"""llama.cpp's arithmetic: inputs rounded as its types round, in every product that torch makes, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from api_client.contract.quant_types import QuantType
from config.roots import Roots
from tests.tiny import tiny_base
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert
from worker.models.evaluate.arithmetic import Arithmetic, InputType, RoundedInputs, input_type, rounded
from worker.models.evaluate.run import Budget, evaluate_files
from worker.models.evaluate.sequences import TokenSequence
from worker.models.evaluate.variants import QuantizedFile
from worker.models.gguf.types import GGMLType
from worker.models.kernels import dequantize_rows, quantize_rows
from worker.models.quantize.engine import quantize_file
from worker.setting import WorkSetting

ANYWHERE = WorkSetting(roots=Roots.anywhere())


def through_q8_0(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is left of values that were stored as Q8_0."""
    stored = np.empty((values.shape[0], values.shape[1] // 32 * 34), np.uint8)
    quantize_rows(GGMLType.Q8_0, values, stored)
    held = np.empty_like(values)
    dequantize_rows(GGMLType.Q8_0, stored, held)
    return held


def test_q8_0_inputs_are_what_a_q8_0_tensor_would_hold() -> None:
    values = torch.randn(7, 96, generator=torch.Generator().manual_seed(1)) * 3
    values[2] = 0
    np.testing.assert_array_equal(rounded(values, InputType.Q8_0).numpy(), through_q8_0(values.numpy()))


def test_q8_k_inputs_have_one_scale_for_256_values() -> None:
    values = torch.zeros(1, 512)
    values[0, :3] = torch.tensor([254.0, 3.1, -0.9])  # steps of 2 in this block
    values[0, 256:258] = torch.tensor([-1.27, 0.0149])  # of 0.01 in that
    got = rounded(values, InputType.Q8_K)
    torch.testing.assert_close(got[0, :3], torch.tensor([254.0, 4.0, 0.0]))
    torch.testing.assert_close(got[0, 256:258], torch.tensor([-1.27, 0.01]))


@pytest.mark.parametrize(
    ("weight", "expected"),
    [("Q4_K", InputType.Q8_K), ("IQ2_S", InputType.Q8_K), ("IQ4_XS", InputType.Q8_K), ("IQ4_NL", InputType.Q8_0),
     ("Q5_1", InputType.Q8_0), ("F16", InputType.F16), ("BF16", InputType.BF16), ("F32", None)],
)  # fmt: skip
def test_a_weight_type_has_the_input_type_of_ggml(weight: str, expected: InputType | None) -> None:
    assert input_type(GGMLType[weight]) is expected


def test_every_form_of_product_is_rounded_and_foreign_weights_are_not() -> None:
    mode = RoundedInputs()
    weight, other, experts = torch.randn(8, 32), torch.randn(8, 32), torch.randn(2, 32, 4)
    mode.use([(weight, InputType.Q8_0), (experts, InputType.Q8_0)])
    x = torch.randn(5, 32)
    r = rounded(x, InputType.Q8_0)
    assert not torch.equal(x, r)
    with torch.no_grad(), mode:
        got = [
            torch.nn.functional.linear(x, weight),
            x @ weight.T,
            torch.addmm(torch.zeros(8), x, weight.T),
            (weight @ x.T).T,
            torch.nn.functional.linear(input=x, weight=weight),
        ]
        passed = torch.nn.functional.linear(x, other)
        batched = torch.bmm(x.expand(2, 5, 32), experts)
    for product in got:
        torch.testing.assert_close(product, r @ weight.T)
    torch.testing.assert_close(passed, x @ other.T)
    torch.testing.assert_close(batched, r.expand(2, 5, 32) @ experts)


def test_a_file_is_judged_as_llama_cpp_runs_it_and_by_its_weights_alone(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", dtype="float32", initializer_range=0.2)
    convert(
        base, tmp_path / "f32.gguf", gguf_dtype="f32", setting=WorkSetting(scratch_dir=tmp_path, roots=Roots.anywhere())
    )
    quantize_file(tmp_path / "f32.gguf", {QuantType.Q8_0: tmp_path / "q8.gguf"})
    ids = tuple(int(t) for t in np.random.default_rng(5).integers(3, 400, 40))
    files = [QuantizedFile(kind.value, [tmp_path / "q8.gguf"], "Q8_0", kind) for kind in Arithmetic]
    scores = evaluate_files(
        open_base_model(base), None, files, [TokenSequence("a", ids, 1)], Budget(None), setting=ANYWHERE
    )

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    expected = torch.log_softmax(plain(torch.tensor([ids])).logits[0].double(), -1)
    for kind in Arithmetic:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data = torch.from_numpy(through_q8_0(parameter.detach().numpy()))
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and kind is Arithmetic.LLAMA_CPP:
                module.register_forward_pre_hook(lambda _module, inputs: (rounded(inputs[0], InputType.Q8_0),))
        found = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        wanted = (expected.exp() * (expected - found)).sum(-1)[:-1].detach().numpy()
        # a value on the edge between two steps may fall to either side, which one token then shows
        np.testing.assert_allclose(np.median(scores.others[kind.value].kld / wanted), 1, rtol=0.02)
        np.testing.assert_allclose(scores.others[kind.value].kld.mean(), wanted.mean(), rtol=0.05)
    assert scores.others["llama.cpp"].kld.mean() > 1.2 * scores.others["exact"].kld.mean()
