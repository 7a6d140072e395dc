"""The effect of 8-bit products in the vision tower on the small Pixtral's answers.

    python -m bench.fp8 [--questions 2000] [--device cuda]

Asks the plain torch model held-out questions greedily, with image embeddings from the encoder's own
tower: once in bf16, once in bf16 with `vision_fp8`. Prints the share of right answers of each, how
many answers differ between the two, and how near the embeddings are.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from bench.accuracy import MODEL_DIR, score
from pixtral_core.model.checkpoint import read_spec
from pixtral_encoder.tower import fp8
from pixtral_encoder.tower.tower import VisionTower
from pixtral_encoder.tower.weights import load_tower
from training.answer import OfflineModel
from training.export import read_checkpoint
from training.held_out import Item, held_out


class WithTower(OfflineModel):
    """The encoder's tower before a float32 language model. `embedded` collects its embeddings."""

    def __init__(self, directory: Path, tower: VisionTower) -> None:
        super().__init__(read_checkpoint(directory).eval(), directory / "tekken.json")
        self._tower = tower
        self.embedded: list[Tensor] = []

    def embed(self, image: Tensor) -> Tensor:
        (embedding,) = self._tower.embed([self._tower.stage(image.numpy())])
        self.embedded.append(embedding.float().cpu())
        return self.embedded[-1][None]


def answers(model: WithTower, items: list[Item]) -> list[str]:
    return [
        model.ask(item.pictures, item.question.text, guess=item.question.answer) for item in items
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fp8", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    if not fp8.is_possible(device):
        raise SystemExit("this GPU has no products in 8 bits")
    items = held_out(given.questions, seed=given.seed)
    spec = read_spec(given.model)
    models, said = {}, {}
    for name in ("bf16", "fp8"):
        tower = load_tower(
            given.model, spec, dtype=torch.bfloat16, device=device, is_fp8=name == "fp8"
        )
        models[name] = WithTower(given.model, tower)
        said[name] = answers(models[name], items)
        right = sum(right for right, _ in score(items, said[name]).values())
        print(f"{name}: {right / len(items):.1%} of {len(items)} right", flush=True)
    others = sum(a != b for a, b in zip(said["bf16"], said["fp8"], strict=True))
    cosines = torch.stack(
        [
            torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)
            for a, b in zip(models["bf16"].embedded, models["fp8"].embedded, strict=True)
        ]
    )
    print(f"{others} answers of {len(items)} differ")
    print(
        f"cosine of an image's two embeddings: least {cosines.min():.5f}, "
        f"median {cosines.median():.5f}"
    )


if __name__ == "__main__":
    main()
