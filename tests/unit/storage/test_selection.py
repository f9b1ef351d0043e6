import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from worker.storage.selection import check_relative_name, wanted_names


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "a/./b",
        "",
        ".",
        "..",
        "a/",
        "a\\..\\b",
        "a\nb",
        "\x7f",
        "x" * 256,
    ],
)
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(PackagingError, match="not a plain relative path") as caught:
        check_relative_name(name, "s3://b/models")
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["config.json", "sub/adapter_model.safetensors", "模型.gguf", "..hidden", "a..b"])
def test_plain_names_are_taken(name: str) -> None:
    check_relative_name(name, "s3://b/models")


def test_data_is_wanted_code_and_trainer_state_are_not() -> None:
    names = ["config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja", "README.md", "merges.txt"]
    others = [
        "modeling_evil.py",
        "optimizer.pt",
        "training_args.bin",
        "rng_state.pth",
        "run.sh",
        ".gitattributes",
        "x.so",
    ]
    assert wanted_names([*others, *names], "s3://b") == sorted(names)


def test_only_pickled_weights_are_refused_before_anything_is_fetched() -> None:
    with pytest.raises(PackagingError, match=r"only pytorch_model-1.bin, pytorch_model-2.bin") as caught:
        wanted_names(["config.json", "pytorch_model-2.bin", "pytorch_model-1.bin"], "s3://b")
    assert caught.value.code is ErrorCode.WEIGHTS_PICKLED


def test_weights_that_come_in_two_layouts_are_fetched_once() -> None:
    both = ["consolidated.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert wanted_names(both, "s3://b") == both[1:]
    assert wanted_names(both[:1], "s3://b") == both[:1]


def test_a_hostile_name_is_refused_even_where_it_is_not_wanted() -> None:
    with pytest.raises(PackagingError, match="not a plain"):
        wanted_names(["config.json", "../../.bashrc"], "s3://b")


def test_an_object_that_is_also_a_directory_is_refused() -> None:
    with pytest.raises(PackagingError, match=r"a.json is both an object and the directory of a.json/b.json"):
        wanted_names(["a.json", "a.json/b.json"], "s3://b")


def test_torch_files_beside_an_adapter_are_refused_before_anything_is_fetched() -> None:
    adapter = ["adapter_config.json", "adapter_model.safetensors", "config.json"]
    state = ["optimizer.pt", "rng_state_0.pth", "training_args.bin", "global_step10/mp_rank_00_model_states.pt"]
    others = ["adapter_model.bin", "value_head.bin", "random_states_0.pkl"]
    assert wanted_names([*adapter, *state, *others], "s3://b") == sorted(adapter)
    for name in ("non_lora_state_dict.bin", "adapter_model/mm_projector.bin", "x.pth"):
        with pytest.raises(PackagingError) as caught:
            wanted_names([*adapter, *state, *others, name], "s3://b")
        assert caught.value.code is ErrorCode.WEIGHTS_PICKLED
        assert name in caught.value.message
        converted = name.rpartition(".")[0] + ".safetensors"
        assert converted in wanted_names([*adapter, *state, *others, name, converted], "s3://b")
