"""Stock vLLM's greedy answers with the language model of a checkpoint in Hugging Face's form.

    python -m tests.decoder.stock_vllm MODEL_DIR QUESTIONS ANSWERS

It is a process of its own, so that the decoder's plug-in is not in it and its memory is free again
at its end. The model is vLLM's own Mistral, from the same files: vLLM's Llava does not load without
torchvision, which a decoder does not need. For a prompt with an image it takes the inputs of the
first layer, in which the adapter's outputs stand for the image.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

LANGUAGE = "language_model."
ADAPTER = "multi_modal_projector.linear_"


def prepare() -> None:
    """Before vLLM's import: without plug-ins, and with the engine in this process."""
    os.environ["VLLM_PLUGINS"] = ""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def text_config(config: Any) -> Any:
    """The language model's config, with the checkpoint's quantisation."""
    text = getattr(config, "text_config", None)
    if text is None:
        return config
    text.architectures = ["TextOfLlava"]
    quantisation = dict(config.quantization_config)
    quantisation["ignore"] = [name.removeprefix(LANGUAGE) for name in quantisation["ignore"]]
    text.quantization_config = quantisation
    return text


def register() -> None:
    from vllm import ModelRegistry
    from vllm.model_executor.models.mistral import MistralForCausalLM

    class TextOfLlava(MistralForCausalLM):
        """vLLM's own, with the tensors' names as in a Llava."""

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            return super().load_weights(
                (name.removeprefix(LANGUAGE), tensor)
                for name, tensor in weights
                if name.startswith(LANGUAGE)
            )

    ModelRegistry.register_model("TextOfLlava", TextOfLlava)


@torch.inference_mode()
def inputs(model_dir: Path, token_ids: list[int], images: list[Tensor], image_id: int) -> Tensor:
    """The inputs of the first layer, (tokens, hidden). The adapter runs as in the decoder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with safe_open(model_dir / "model.safetensors", framework="pt", device=device) as file:
        tokens = torch.tensor(token_ids, device=device)
        found: Tensor = file.get_tensor(f"{LANGUAGE}model.embed_tokens.weight")[tokens]
        part = {
            f"{number}.{kind}": file.get_tensor(f"{ADAPTER}{number}.{kind}")
            for number in (1, 2)
            for kind in ("weight", "bias")
        }
    adapted = []
    for image in images:
        cut = image.to(device, torch.bfloat16)
        hidden = F.gelu(F.linear(cut, part["1.weight"], part["1.bias"]))
        adapted.append(F.linear(hidden, part["2.weight"], part["2.bias"]))
    found[tokens == image_id] = torch.cat(adapted)
    return found.cpu()


def main() -> None:
    model_dir, questions, answers = map(Path, sys.argv[1:])
    prepare()
    from vllm import LLM, SamplingParams

    asked = torch.load(questions, weights_only=True)
    register()
    prompts: list[Any] = [
        {"prompt_embeds": inputs(model_dir, each["token_ids"], each["images"], asked["image_id"])}
        if each["images"]
        else {"prompt_token_ids": each["token_ids"]}
        for each in asked["prompts"]
    ]
    llm = LLM(
        model=str(model_dir),
        skip_tokenizer_init=True,
        hf_overrides=text_config,
        load_format="safetensors",
        enable_prompt_embeds=True,
        **asked["arguments"],
    )
    sampling = SamplingParams(
        max_tokens=asked["max_tokens"], temperature=0.0, ignore_eos=True, detokenize=False
    )
    # Each prompt alone, because the shapes of a step choose its kernels.
    told = [
        list(llm.generate(each, sampling, use_tqdm=False)[0].outputs[0].token_ids)
        for each in prompts
    ]
    answers.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
