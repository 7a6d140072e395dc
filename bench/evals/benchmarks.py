"""The six benchmarks of the model card's table that have images, with the card's figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.evals import metrics, questions
from bench.evals.metrics import Metric
from bench.evals.questions import Reader

# The tables "Multimodal Benchmarks" and "Instruction Following", column "Pixtral 12B".
CARD: Final = "https://huggingface.co/mistralai/Pixtral-12B-2409"

_RELAXED: Final[Mapping[str, Metric]] = {
    "explicit_prompt_relaxed_correctness": metrics.explicit_relaxed_correctness,
    "anywhere_in_answer_relaxed_correctness": metrics.anywhere_relaxed_correctness,
}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One row of the table.

    `metrics` are by their names in mistral-evals; the first one's mean is compared with `card`. A
    benchmark without metrics needs a judge. `scale` is the value of a perfect score.
    """

    name: str
    title: str
    card: float
    reader: Reader
    max_tokens: int
    metrics: Mapping[str, Metric]
    scale: int = 100

    @property
    def is_judged(self) -> bool:
        return not self.metrics


BENCHMARKS: Final = (
    Benchmark("mmmu", "MMMU (CoT)", 52.5, questions.mmmu, 2048, _RELAXED),
    Benchmark("mathvista", "MathVista (CoT)", 58.0, questions.mathvista, 2048, _RELAXED),
    Benchmark("chartqa", "ChartQA (CoT)", 81.8, questions.chartqa, 2048, _RELAXED),
    Benchmark(
        "docvqa",
        "DocVQA (ANLS)",
        90.7,
        questions.docvqa,
        10,
        {"anls": metrics.anls, "anls_of_leaderboard": metrics.anls_of_leaderboard},
    ),
    Benchmark(
        "vqav2",
        "VQAv2 (VQA Match)",
        78.6,
        questions.vqav2,
        10,
        {"vqa_match": metrics.vqa_match, "vqa_match_any_case": metrics.vqa_match_any_case},
    ),
    Benchmark("mm_mt_bench", "MM-MT-Bench", 6.05, questions.mm_mt_bench, 4096, {}, scale=10),
)
