"""Candidates measured in memory against files that were written, and the choice between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from api_client.contract.quant_types import QuantType
from config.roots import Roots
from tests.tiny import tiny_tokenizer
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert
from worker.models.convert.upstream import load_upstream
from worker.models.evaluate.figures import figures
from worker.models.evaluate.run import Budget, evaluate_files
from worker.models.evaluate.sequences import TokenSequence
from worker.models.evaluate.variants import QuantizedFile
from worker.models.fit.prices import Prices, TensorPrice
from worker.models.fit.pricing import price_tensors
from worker.models.fit.select import STOCK, FitSubject, Types, correction, measure, predicted, scaled, select
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.types import GGMLType
from worker.models.imatrix.calibration import Calibration
from worker.models.imatrix.compute import CalibrationChunks
from worker.models.imatrix.sums import mean_squares
from worker.models.mixture.model import model_facts
from worker.models.mixture.policy import choose_mixture
from worker.models.quantize.engine import quantize_file
from worker.models.sensitivity.compute import compute_sensitivity
from worker.setting import WorkSetting

TEXT = (
    "The miller counted the sacks twice, once by hand and once by ear; def area(w, h): return w * h; 7 * 8 = 56. " * 9
)
SETTING = WorkSetting(roots=Roots.anywhere())
TYPES = [GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0]


class Priced:
    """A model of two layers, one of which does next to nothing, with its prices."""

    def __init__(self, directory: Path) -> None:
        torch.manual_seed(2)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=400,
                hidden_size=256,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
        for name, parameter in model.named_parameters():
            parameter.data *= 0.1 if "layers.1" in name and parameter.dim() > 1 else 4 if parameter.dim() > 1 else 1
        model.save_pretrained(directory)
        tiny_tokenizer(directory)
        self.source = directory / "model.gguf"
        convert(directory, self.source, gguf_dtype="f16", setting=WorkSetting(roots=Roots.anywhere()))
        base = open_base_model(directory)
        sensitivity = compute_sensitivity(
            base,
            None,
            CalibrationChunks(Calibration("test", TEXT), directory, 8, 32),
            work_dir=directory / "work",
            device="cpu",
            setting=SETTING,
        ).sensitivity
        matrix = mean_squares(sensitivity.matrix(), "m.gguf")
        self.prices = price_tensors(self.source, sensitivity, TYPES, matrix)
        generator = torch.Generator().manual_seed(9)
        ids = torch.randint(3, 400, (6, 64), generator=generator)
        sequences = [TokenSequence("a", tuple(row.tolist()), 8) for row in ids]
        self.subject = FitSubject(base, None, self.source, matrix, sequences)

    def stock(self, quant_type: QuantType) -> Types:
        with open_gguf(self.source) as file:
            mixture = choose_mixture(model_facts(file.metadata), file.tensors, quant_type, has_imatrix=True)
            types = {tensor.name: each.name for tensor, each in zip(file.tensors, mixture.types, strict=True)}
        return {tensor.name: types[tensor.name] for tensor in self.prices.tensors}

    def size(self, types: Types) -> int:
        return sum(tensor.bytes_of[types[tensor.name]] for tensor in self.prices.tensors)

    def allocate(self, budget: int, prices: Prices) -> Types | None:
        """Greedy: from the smallest types, the step that gains most for its bytes, as long as one fits."""
        types = {tensor.name: min(tensor.kld_of, key=lambda n, t=tensor: t.bytes_of[n]) for tensor in prices.tensors}  # type: ignore[misc]
        while True:
            left = budget - self.size(types)
            steps = [
                ((tensor.kld_of[types[tensor.name]] - kld) / more, tensor.name, name)
                for tensor in prices.tensors
                for name, kld in tensor.kld_of.items()
                if 0 < (more := tensor.bytes_of[name] - tensor.bytes_of[types[tensor.name]]) <= left
            ]
            gain, tensor_name, name = max(steps, default=(0.0, "", ""))
            if gain <= 0:
                return types if left >= 0 else None
            types[tensor_name] = name


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Priced:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_upstream().conversion.TextModel, "get_vocab_base_pre", lambda _self, _tokenizer: "gpt-2")
        return Priced(tmp_path_factory.mktemp("model"))


def test_a_candidate_is_measured_as_the_file_that_it_would_become(priced: Priced, tmp_path: Path) -> None:
    types = priced.stock(QuantType.Q3_K_M)
    (measured,) = measure(priced.prices, {"one": types, "the same": types}, priced.subject, setting=SETTING)
    path = tmp_path / "q.gguf"
    quantize_file(priced.source, {QuantType.Q3_K_M: path}, imatrix=priced.subject.matrix)
    file = QuantizedFile("file", [path])
    scores = evaluate_files(
        priced.subject.base, None, [file], priced.subject.sequences, Budget(None, first_tokens=1 << 20), setting=SETTING
    )
    file.close()
    assert measured.name == "one"
    assert measured.divergence == figures(scores.reference, scores.others["file"])
    assert measured.kld > 1e-3
    assert measured.predicted == pytest.approx(measured.kld, rel=0.6)


def test_the_best_measured_mixture_is_taken_and_it_beats_the_stock_one(priced: Priced) -> None:
    stock = priced.stock(QuantType.Q3_K_M)
    budget = priced.size(stock)
    found = select(priced.prices, stock, lambda p: priced.allocate(budget, p), priced.subject, setting=SETTING)
    by_name = {each.name: each for each in found.measured}
    assert found.chosen.kld == min(each.kld for each in found.measured)
    assert found.chosen.kld < 0.8 * by_name[STOCK].kld
    assert all(priced.size(each.types) <= budget for each in found.measured)
    assert len(found.measured) >= 4
    # layer 1 does next to nothing: its bits go elsewhere
    assert found.chosen.types["blk.1.ffn_down.weight"] in ("Q2_K", "Q3_K")


def test_the_stock_mixture_wins_where_nothing_beats_it(priced: Priced) -> None:
    stock = priced.stock(QuantType.Q6_K)
    small = priced.stock(QuantType.Q2_K)
    found = select(priced.prices, stock, lambda _: small, priced.subject, setting=SETTING)
    assert found.chosen.name == STOCK
    assert found.chosen.types == stock


def test_corrected_prices_predict_what_was_measured(priced: Priced) -> None:
    tensors = tuple(
        TensorPrice(name, (256, 1), {"Q4_K": 144, "Q8_0": 272}, {"Q4_K": kld, "Q8_0": kld / 10})
        for name, kld in (("token_embd.weight", 0.01), ("output.weight", 0.02), ("blk.0.ffn_up.weight", 0.03))
    )
    prices = Prices(tensors)
    truth = {"embedding": 2.0, "head": 0.5, "layers": 1.2}
    mixtures = [
        {tensor.name: "Q8_0" if number & 1 << at else "Q4_K" for at, tensor in enumerate(tensors)}
        for number in range(7)
    ]
    (real,) = measure(priced.prices, {"any": priced.stock(QuantType.Q4_K_M)}, priced.subject, setting=SETTING)
    measured = []
    for types in mixtures:
        kld = real.divergence.mean_kld.model_copy(update={"value": predicted(scaled(prices, truth), types)})
        divergence = real.divergence.model_copy(update={"mean_kld": kld})
        measured.append(type(real)("", types, predicted(prices, types), divergence))
    found = correction(prices, measured)
    assert found == pytest.approx(truth, rel=0.1)
