"""Error codes and quant types: the tables are complete and say what they should."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest

from api_client.contract.errors import ErrorClass, ErrorCode, Failure, PackagingError
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.words.language import Language

HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_cause_and_remedy_in_both_languages(code: ErrorCode) -> None:
    entry = code.row
    assert isinstance(entry.error_class, ErrorClass)
    for text in (entry.cause_en, entry.remedy_en):
        assert text.endswith((".", ")."))
        assert not HAN.search(text)
    for text in (entry.cause_zh, entry.remedy_zh):
        assert HAN.search(text)
    assert code.value == code.name.lower()


def test_an_error_survives_json_and_pickle_with_its_facts() -> None:
    error = PackagingError(
        ErrorCode.DISK_SPACE_INSUFFICIENT, "needed 31.2 GB, free 12.0 GB", fields={"needed_bytes": 31_200_000_000}
    )
    for copy in (PackagingError.from_dict(error.to_dict()), pickle.loads(pickle.dumps(error))):
        assert copy.to_dict() == error.to_dict()
        assert copy.code is ErrorCode.DISK_SPACE_INSUFFICIENT
    assert error.remedy == ErrorCode.DISK_SPACE_INSUFFICIENT.row.remedy_en


@pytest.mark.parametrize("error_class", list(ErrorClass))
def test_a_code_from_a_newer_version_keeps_its_text_class_message_and_remedy(error_class: ErrorClass) -> None:
    stored: dict[str, Any] = {
        "code": "quantum_decoherence",
        "class": error_class.value,
        "message": "m",
        "remedy": "r",
        "fields": {},
    }
    error = PackagingError.from_dict(stored)
    for copy in (error, pickle.loads(pickle.dumps(error)), PackagingError.of(error.failure)):
        assert (copy.code, copy.error_class, copy.message) == ("quantum_decoherence", error_class, "m")
        assert copy.failure.to_record() == stored
        assert copy.retryable == (error_class is ErrorClass.TRANSIENT)
    told = error.failure.told(Language.ZH)
    assert told.remedy == "r"
    assert HAN.search(told.cause)
    assert (error.code.http_status, error.code.exit_code) == (
        (422, 2) if error_class is ErrorClass.REFUSE else (500 if error_class is ErrorClass.BUG else 503, 1)
    )
    assert "quantum_decoherence" not in list(ErrorCode)


@pytest.mark.parametrize(("code", "error_class"), [("upload_failed", "transient"), ("quantum_decoherence", "bug")])
def test_a_record_of_the_version_before_holds_no_class(code: str, error_class: str) -> None:
    error = PackagingError.from_dict({"code": code, "message": "m", "remedy": "r", "fields": {"stage": "publish"}})
    assert (error.code, error.error_class, error.failure.stage) == (code, error_class, "publish")


@pytest.mark.parametrize(
    "record",
    [{}, {"code": None}, {"code": "\x1b[2J"}, {"code": "x" * 65, "class": "transient"}, {"code": "A", "fields": [1]}],
)
def test_a_record_that_holds_no_code_is_an_internal_error(record: dict[str, Any]) -> None:
    failure = Failure.from_record(record)
    assert (failure.code, failure.error_class, failure.fields) == (ErrorCode.INTERNAL_ERROR, ErrorClass.BUG, {})


def test_a_remedy_is_told_in_the_reader_s_language_unless_it_was_written_for_the_case() -> None:
    usual = Failure.from_record(PackagingError(ErrorCode.JOB_NOT_FOUND, "m").failure.to_record())
    own = Failure.from_record(PackagingError(ErrorCode.JOB_NOT_FOUND, "m", remedy="Ask Ann.").failure.to_record())
    assert usual.remedy is None
    assert usual.told(Language.ZH).remedy == ErrorCode.JOB_NOT_FOUND.row.remedy_zh
    assert {own.told(language).remedy for language in Language} == {"Ask Ann."}


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        (ErrorCode.REDIS_UNREACHABLE, True),
        (ErrorCode.UPLOAD_FAILED, True),
        (ErrorCode.DISK_SPACE_INSUFFICIENT, False),
        (ErrorCode.ADAPTER_MISMATCH, False),
        (ErrorCode.INTERNAL_ERROR, False),
    ],
)
def test_only_transient_errors_are_retried(code: ErrorCode, retryable: bool) -> None:
    assert PackagingError(code, "m").retryable is retryable


# llama.cpp's llama_ftype numbers, copied from the table of its public header
FILE_TYPES = (
    "F32 0, F16 1, Q4_0 2, Q4_1 3, Q8_0 7, Q5_0 8, Q5_1 9, Q2_K 10, Q3_K_S 11, Q3_K_M 12, Q3_K_L 13, Q4_K_S 14, "
    "Q4_K_M 15, Q5_K_S 16, Q5_K_M 17, Q6_K 18, IQ2_XXS 19, IQ2_XS 20, Q2_K_S 21, IQ3_XS 22, IQ3_XXS 23, IQ1_S 24, "
    "IQ4_NL 25, IQ3_S 26, IQ3_M 27, IQ2_S 28, IQ2_M 29, IQ4_XS 30, IQ1_M 31, BF16 32, "
    "TQ1_0 36, TQ2_0 37, MXFP4_MOE 38, Q1_0 40, Q2_0 41"
)


def test_quant_types_are_the_promised_ones_with_llama_cpp_s_numbers() -> None:
    expected = {name: int(number) for name, number in (item.split() for item in FILE_TYPES.split(", "))}
    assert {quant.value: QUANT_TYPES[quant].file_type for quant in QuantType} == expected
    assert set(QUANT_TYPES) == set(QuantType)


def test_every_quant_type_is_described_in_both_languages_within_sane_bits() -> None:
    for quant, info in QUANT_TYPES.items():
        assert info.description_en
        assert not HAN.search(info.description_en)
        assert HAN.search(info.description_zh)
        assert 1.4 < info.bits_per_weight <= 32
        assert info.family == (
            "trained"
            if quant in ("MXFP4_MOE", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0")
            else "IQ"
            if quant.startswith("IQ")
            else "K"
            if "_K" in quant
            else "legacy"
            if quant[0] == "Q"
            else "float"
        )
        assert ("imatrix" in info.description_en) == info.needs_imatrix


def test_recommended_and_matrix_needing_types_are_the_known_ones() -> None:
    assert {q.value for q in QuantType if QUANT_TYPES[q].recommended} == {"Q4_K_M", "Q5_K_M", "Q8_0"}
    needing = sorted(q.value for q in QuantType if QUANT_TYPES[q].needs_imatrix)
    assert " ".join(needing) == "IQ1_M IQ1_S IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ3_XS IQ3_XXS Q2_K_S"
