"""vLLM's own arguments among the decoder's settings."""

from pathlib import Path

import pytest

from pixtral_core.settings import load
from pixtral_decoder.engine.engine_args import BadEngineArguments, EngineOptions, _check_spare_slot
from pixtral_decoder.process import _engine_options
from pixtral_decoder.settings import DecoderSettings


def test_arguments_of_vllm_are_a_table_in_the_file(tmp_path: Path) -> None:
    config = tmp_path / "decoder.toml"
    config.write_text(
        f'model_dir = "{tmp_path}"\n'
        '[engine_args]\nquantization = "fp8"\nmax_num_batched_tokens = 1024\n'
        '[engine_args.speculative_config]\nmethod = "ngram"\n'
    )
    settings = load(DecoderSettings, ["--config", str(config)], prog="decoder")
    assert _engine_options(settings).more == {
        "quantization": "fp8",
        "max_num_batched_tokens": 1024,
        "speculative_config": {"method": "ngram"},
    }


def test_arguments_of_vllm_are_named_in_flags(tmp_path: Path) -> None:
    flags = ["max_num_batched_tokens=1024", "enforce_eager=true", "quantization=fp8"]
    argv = ["--model-dir", str(tmp_path), *(f"--engine-args={flag}" for flag in flags)]
    assert load(DecoderSettings, argv, prog="decoder").engine_args == {
        "max_num_batched_tokens": 1024,
        "enforce_eager": True,
        "quantization": "fp8",
    }


def test_flags_of_vllm_mean_the_same(tmp_path: Path) -> None:
    given = {
        "served-model-name": "ours",
        "max-model-len": "4096",
        "max-num-seqs": "8",
        "gpu-memory-utilization": "0.5",
        "kv-cache-memory-bytes": "100000000",
        "tensor-parallel-size": "2",
    }
    flags = [f"--{name}={value}" for name, value in given.items()]
    settings = load(DecoderSettings, [f"--model-dir={tmp_path}", *flags], prog="decoder")
    assert settings.model_name == "ours"
    assert settings.context_length == 4096
    assert settings.max_running == 8
    assert settings.gpu_memory_fraction == 0.5
    assert settings.kv_cache_bytes == 100_000_000
    assert settings.tensor_parallel == 2


def test_a_quantisation_is_one_word(tmp_path: Path) -> None:
    argv = ["--model-dir", str(tmp_path), "--quantization", "fp8"]
    settings = load(DecoderSettings, argv, prog="decoder")
    assert _engine_options(settings).more == {"quantization": "fp8"}


def test_a_quantisation_is_not_set_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model-dir", str(tmp_path), "--quantization=fp8", "--engine-args=quantization=fp8"]
    with pytest.raises(SystemExit):
        load(DecoderSettings, argv, prog="decoder")
    assert "quantization is set twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tensor_parallel_size=2", "tensor_parallel_size is set by tensor_parallel"),
        ("tokenizer_mode=hf", "tokenizer_mode must not be set"),
        ("media_io_kwargs={}", "media_io_kwargs has no effect"),
    ],
)
def test_what_the_decoder_sets_itself_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        load(DecoderSettings, ["--model-dir", str(tmp_path), "--engine-args", name], prog="decoder")
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_adapters_are_named_in_the_file_and_in_flags(tmp_path: Path) -> None:
    poet = tmp_path / "poet"
    poet.mkdir()
    config = tmp_path / "decoder.toml"
    config.write_text(f'model_dir = "{tmp_path}"\n[lora_modules]\npoet = "{poet}"\n')
    in_file = load(DecoderSettings, ["--config", str(config)], prog="decoder")
    argv = ["--model-dir", str(tmp_path), f"--lora-modules=poet={poet}"]
    in_flags = load(DecoderSettings, argv, prog="decoder")
    assert in_file.lora_modules == in_flags.lora_modules == {"poet": poet}
    assert _engine_options(in_file).adapters == {"poet": poet}


def test_an_adapter_has_not_the_models_own_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model-dir", str(tmp_path), f"--lora-modules={tmp_path.name}={tmp_path}"]
    with pytest.raises(SystemExit):
        load(DecoderSettings, argv, prog="decoder")
    assert "not the model's own" in capsys.readouterr().err


def test_on_a_cpu_one_slot_more_is_needed_than_there_are_adapters(tmp_path: Path) -> None:
    adapters = {"poet": tmp_path, "clerk": tmp_path}
    _check_spare_slot(EngineOptions(tmp_path, adapters=adapters))
    _check_spare_slot(EngineOptions(tmp_path, adapters=adapters, more={"max_loras": 3}))
    with pytest.raises(BadEngineArguments, match="max_loras"):
        _check_spare_slot(EngineOptions(tmp_path, adapters=adapters, more={"max_loras": 2}))
