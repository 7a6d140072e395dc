"""Asks the trained model in plain torch. The answers of the service are compared with these."""

import io
from pathlib import Path
from typing import Any

import torch
from mistral_common.protocol.instruct.chunk import ContentChunk, ImageChunk, TextChunk
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import Image
from torch import Tensor

from training.batches import EOS
from training.export import read_checkpoint
from training.model import Pixtral

MAX_TOKENS = 24


class OfflineModel:
    """A model whose prompts mistral_common encodes completely, pictures included."""

    def __init__(self, model: Pixtral, tokenizer: Path) -> None:
        self.model = model
        self._device = next(model.parameters()).device
        self._tokenizer: MistralTokenizer[Any, Any, Any, Any, Any] = MistralTokenizer.from_file(
            tokenizer
        )

    @classmethod
    def from_checkpoint(cls, directory: Path) -> "OfflineModel":
        """Reads a checkpoint; the model computes in float32."""
        return cls(read_checkpoint(directory).eval(), directory / "tekken.json")

    def prompt(self, pictures: tuple[bytes, ...], question: str) -> tuple[Tensor, list[Tensor]]:
        """Token ids (1, tokens), and the image embeddings, each (1, image tokens, width)."""
        chunks: list[ContentChunk] = [
            ImageChunk(image=Image.open(io.BytesIO(picture))) for picture in pictures
        ]
        request: ChatCompletionRequest[Any] = ChatCompletionRequest(
            messages=[UserMessage(content=[*chunks, TextChunk(text=question)])]
        )
        encoded = self._tokenizer.encode_chat_completion(request)
        images = [torch.from_numpy(image).float() for image in encoded.images]
        token_ids = torch.tensor([encoded.tokens], device=self._device)
        return token_ids, [self.embed(image) for image in images]

    @torch.inference_mode()
    def embed(self, image: Tensor) -> Tensor:
        """Embeds an image (3, height, width), as mistral_common prepares it. Returns (1, image
        tokens, width)."""
        size = self.model.spec.patch_size
        rows, columns = image.shape[1] // size, image.shape[2] // size
        cut = image.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4)
        patches = cut.reshape(1, rows * columns, -1).to(self._device)
        (embedding,) = self.model.embed_images([patches], [(rows, columns)])
        return embedding

    @torch.inference_mode()
    def complete(self, token_ids: Tensor, embeddings: list[Tensor], guess: str = "") -> str:
        """The greedy answer. If it is the guess, one step finds it; otherwise each token takes a
        step."""
        if guess and self.would_say(token_ids, embeddings, guess):
            return guess
        answer: list[int] = []
        while len(answer) < MAX_TOKENS:
            state = self.model.hidden(token_ids, embeddings)[:, -1]
            token = int(self.model.output(state).argmax())
            if token == EOS:
                break
            answer.append(token)
            token_ids = torch.cat([token_ids, token_ids.new_tensor([[token]])], dim=1)
        return self._tokenizer.decode(answer)

    @torch.inference_mode()
    def would_say(self, token_ids: Tensor, embeddings: list[Tensor], answer: str) -> bool:
        """Whether `answer` is the greedy answer: each of its tokens, and then the end, must be the
        most probable one after the tokens before it."""
        tekken = self._tokenizer.instruct_tokenizer.tokenizer
        expected = token_ids.new_tensor([[*tekken.encode(answer, bos=False, eos=False), EOS]])
        states = self.model.hidden(torch.cat([token_ids, expected[:, :-1]], dim=1), embeddings)
        greedy = self.model.output(states[:, token_ids.shape[1] - 1 :]).argmax(-1)
        return bool((greedy == expected).all())

    def ask(self, pictures: tuple[bytes, ...], question: str, guess: str = "") -> str:
        """The greedy answer to a question about pictures. Each picture is an image file."""
        return self.complete(*self.prompt(pictures, question), guess)
