"""Trains the small Pixtral and writes it as a checkpoint.

    python -m training.train --preset h200 --work DIR --output models/pixtral-mini

If the command is stopped, the same command continues from the last saved step. DIR contains the
state, the log (`log.jsonl`) and the plot of the losses (`loss.png`).

First the vision tower learns alone, from the labels of each patch. Then the whole model learns to
answer, and the tower still learns from the labels too. The learning rate is constant until the last
third, where it falls to zero. So `--steps` can still be raised before the last third. At each saved
state, the model answers questions with words and fonts on which it is not trained.
`bench/accuracy.py` asks other questions.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from training.answer import OfflineModel
from training.batches import Batch, Batches, BatchPlan, normalise
from training.drawing import ATTRIBUTES
from training.export import write_checkpoint
from training.held_out import held_out
from training.model import ModelSpec, PatchTeacher, Pixtral
from training.muon import StackedMuon
from training.plot import plot_losses
from training.tokenizer import write_tokenizer

WARM_UP_STEPS = 40
FALLING_SHARE = 0.35
# ATTRIBUTE_WEIGHTS weighs the losses of the teacher against each other, and TEACHER_WEIGHT weighs
# their sum against the loss of the answers. `kind` is the hardest attribute to learn, and the other
# attributes depend on it.
ATTRIBUTE_WEIGHTS = {"kind": 3.0, "same_kind": 0.5, "same_colour": 0.5, "total": 0.5}
TEACHER_WEIGHT = 0.3
# The seed of the questions that are asked during training. The published figures use seed 0.
PROGRESS_SEED = 1


@dataclass(frozen=True, slots=True)
class Preset:
    """A model, its batches and its schedule, sized for a machine."""

    spec: ModelSpec
    plan: BatchPlan
    steps: int
    learning_rate: float
    workers: int
    save_every: int
    questions: int


PRESETS = {
    "cpu": Preset(
        spec=ModelSpec(
            dim=192,
            n_layers=4,
            n_heads=6,
            n_kv_heads=2,
            hidden_dim=512,
            vision_dim=192,
            vision_layers=5,
            vision_heads=6,
            vision_hidden_dim=512,
        ),
        plan=BatchPlan(tokens=4000, largest_grid=12, most_patches=77, turns=8, tower_steps=1200),
        steps=9000,
        learning_rate=3e-3,
        workers=0,
        save_every=100,
        questions=80,
    ),
    "h200": Preset(
        spec=ModelSpec(
            dim=256,
            n_layers=6,
            n_heads=8,
            n_kv_heads=2,
            hidden_dim=704,
            vision_dim=256,
            vision_layers=7,
            vision_heads=8,
            vision_hidden_dim=704,
        ),
        plan=BatchPlan(tokens=40000, largest_grid=16, most_patches=256, turns=8, tower_steps=1200),
        steps=8000,
        learning_rate=3e-3,
        workers=14,
        save_every=3000,
        questions=160,
    ),
}


class Trainer:
    """The model, its teacher and their optimizers. They are the state of a run, except its step."""

    def __init__(self, preset: Preset, device: torch.device, seed: int) -> None:
        torch.manual_seed(seed)
        self.preset, self.device = preset, device
        self.model = Pixtral(preset.spec).to(device)
        self.teacher = PatchTeacher(preset.spec.vision_dim, ATTRIBUTES).to(device)
        weights = [ATTRIBUTE_WEIGHTS.get(name, 1.0) for name in ATTRIBUTES]
        self.attribute_weights = torch.tensor(weights, device=device)
        if device.type == "cuda":
            for block in (*self.model.layers, *self.model.vision_encoder.transformer.layers):
                block.compile(dynamic=True)
        matrices: list[nn.Parameter] = []
        others = list(self.teacher.parameters())
        for name, parameter in self.model.named_parameters():
            is_hidden = parameter.ndim == 2 and name.split(".")[0] not in {
                "tok_embeddings",
                "output",
            }
            (matrices if is_hidden else others).append(parameter)
        rate = preset.learning_rate
        self.optimizers: list[torch.optim.Optimizer] = [
            StackedMuon(matrices, rate, weight_decay=0.02),
            torch.optim.AdamW(others, rate / 2, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "teacher": self.teacher}

    def step(self, batch: Batch, *, scale: float) -> dict[str, Tensor]:
        """Updates the weights once. Returns the losses, and the share of right answer tokens. A GPU
        may still be computing these tensors."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
        batch = batch.to(self.device)
        # On a CPU, the fused attention is slow for sequences this short: it would take a third of
        # a step.
        attention = SDPBackend.MATH if self.device.type == "cpu" else SDPBackend.FLASH_ATTENTION
        with torch.autocast(self.device.type, torch.bfloat16), sdpa_kernel(attention):
            patches = [normalise(patches) for patches in batch.patches]
            embeddings = self.model.embed_images(patches, batch.grids)
            taught = self.teacher(torch.cat(embeddings, dim=1), torch.cat(batch.labels, dim=1))
            loss = (taught * self.attribute_weights).sum()
            figures = {"tower": taught.mean(), "kind": taught[0]}
            if not batch.is_lesson:
                asked = batch.targets >= 0
                logits = self.model.output(self.model.hidden(batch.token_ids, embeddings)[asked])
                targets = batch.targets[asked]
                answers = F.cross_entropy(logits.float(), targets)
                loss = answers + TEACHER_WEIGHT * loss
                figures["answers"] = answers
                figures["right"] = (logits.argmax(-1) == targets).float().mean()
        loss.backward()
        for module in self.modules.values():
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {name: figure.detach() for name, figure in figures.items()}

    def score(self, tokenizer: Path) -> dict[str, float]:
        """The share of right answers by category."""
        # This uses a copy of the model, because the trained model would be compiled again for
        # single pictures.
        model = Pixtral(self.preset.spec).to(self.device)
        model.load_state_dict(self.model.state_dict())
        offline = OfflineModel(model, tokenizer)
        right: dict[str, list[bool]] = {}
        with torch.autocast(self.device.type, torch.bfloat16):
            for item in held_out(self.preset.questions, seed=PROGRESS_SEED):
                question = item.question
                prompt = offline.prompt(item.pictures, question.text)
                is_right = offline.would_say(*prompt, question.answer)
                right.setdefault(question.category, []).append(is_right)
        return {category: sum(of) / len(of) for category, of in right.items()}

    def save(self, path: Path, step: int) -> None:
        state = {
            "step": step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> int:
        """Loads a saved state. Returns the next step."""
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])


def learning_rate_scale(step: int, steps: int) -> float:
    falling = (steps - step) / (steps * FALLING_SHARE)
    return min(1.0, (step + 1) / WARM_UP_STEPS, falling)


def train(preset: Preset, work: Path, output: Path, seed: int, minutes: float) -> bool:
    """Trains until the last step or for `minutes`. Returns whether the last step is done."""
    work.mkdir(parents=True, exist_ok=True)
    state, log = work / "state.pt", work / "log.jsonl"
    log.touch()
    tokenizer = work / "tekken.json"
    spec = preset.spec
    write_tokenizer(tokenizer, vocab_size=spec.vocab_size, max_image_size=spec.max_image_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(preset, device, seed)
    start = trainer.load(state) if state.exists() else 0
    began = time.monotonic()
    step = start
    for batch in _batches(tokenizer, preset, seed, start):
        scale = learning_rate_scale(step, preset.steps)
        figures = trainer.step(batch, scale=scale)
        step += 1
        if step % 10 == 0 or step == preset.steps:
            losses = {name: figure.item() for name, figure in figures.items()}
            seconds = round(time.monotonic() - began, 2)
            _write_line(log, {"step": step, "seconds": seconds, **losses})
            _show_progress(step, start, preset.steps, began, losses)
        out_of_time = time.monotonic() - began > minutes * 60
        if step % preset.save_every == 0 or step == preset.steps or out_of_time:
            trainer.save(state, step)
            scores = trainer.score(tokenizer)
            _write_line(log, {"step": step, "scores": scores})
            shown = "  ".join(f"{category} {share:.0%}" for category, share in scores.items())
            print(f"\n{step}: {shown}", flush=True)
            plot_losses(log, work / "loss.png")
            write_checkpoint(output, trainer.model)
        if out_of_time:
            break
    print()
    return step == preset.steps


def _write_line(log: Path, line: dict[str, Any]) -> None:
    with log.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def _batches(tokenizer: Path, preset: Preset, seed: int, start: int) -> Iterator[Batch]:
    loader = DataLoader(
        Batches(tokenizer, preset.plan, seed, start, preset.steps),
        batch_size=None,
        num_workers=preset.workers,
        prefetch_factor=8 if preset.workers else None,
    )
    return iter(loader)


def _show_progress(
    step: int, start: int, steps: int, began: float, figures: dict[str, float]
) -> None:
    left = (time.monotonic() - began) / (step - start) * (steps - step) / 60
    done = "#" * (30 * step // steps)
    losses = "  ".join(f"{name} {figure:.3f}" for name, figure in figures.items())
    print(f"\r[{done:<30}] {step}/{steps}  {losses}  {left:.0f} min left ", end="", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        required=True,
        help="the machine for which the model and batches are sized",
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="directory for state, log and plot"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="replaces the steps of the preset")
    parser.add_argument("--tower-steps", type=int, help="replaces the tower steps of the preset")
    parser.add_argument("--minutes", type=float, default=1e9, help="save and stop after this many")
    given = parser.parse_args()
    preset = PRESETS[given.preset]
    if given.tower_steps is not None:
        preset = replace(preset, plan=replace(preset.plan, tower_steps=given.tower_steps))
    if given.steps is not None:
        preset = replace(preset, steps=given.steps)
    done = train(preset, given.work, given.output, given.seed, given.minutes)
    print("done" if done else "stopped; the same command continues", given.output)


if __name__ == "__main__":
    main()
