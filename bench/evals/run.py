"""Asks the questions of a benchmark that have no answer yet, and scores all of them."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from bench.evals.answers import Answer, AnswerFile
from bench.evals.asking import Conversation, NoServer, Server
from bench.evals.benchmarks import Benchmark
from bench.evals.judge import MAX_TOKENS, TRIES, judge_messages, rating
from bench.evals.questions import BadData, Question, digest, read
from bench.evals.scores import Score, score, scores_of

_SECONDS_A_LINE: Final = 10.0
_MOST_FAILURES_IN_A_ROW: Final = 50


@dataclass(frozen=True, slots=True)
class Run:
    """The directories of a run, and how it asks.

    `results` gets `NAME.answers.jsonl`, `NAME.judgements.jsonl` and `NAME.scored.jsonl`. With a
    `limit` that many questions of each benchmark are asked, evenly from its beginning to its end.
    """

    results: Path
    concurrency: int = 16
    limit: int | None = None
    judge_sees_images: bool = True

    def ask(self, benchmark: Benchmark, data: Path, server: Server, judge: Server | None) -> Score:
        """Asks the benchmark's questions, and the judge where it is judged.

        Raises:
            BadData: a row is not of its form, or there is none. Nothing is asked.
            NoServer: many questions in a row fail.
        """
        path = data / f"{benchmark.name}.jsonl"
        questions = evenly(list(read(path, benchmark.reader)), self.limit)
        if not questions:
            raise BadData(f"{path} has no rows")
        wanted = {question.id: question.digest for question in questions}
        answers = self._file(benchmark, "answers")
        lacking = [each for each in questions if not answers.has(each.id, wanted[each.id])]
        _say(f"{benchmark.name}: {len(questions)} questions, {len(lacking)} to ask")
        self._fill(
            answers,
            lacking,
            wanted,
            [each.messages for each in lacking],
            server,
            benchmark.max_tokens,
        )
        if judge is not None and benchmark.is_judged:
            self._judge(benchmark, questions, answers, judge)
        # References may have changed since the answer.
        found = [
            replace(answers.answers[each.id], references=each.references, groups=each.groups)
            for each in questions
        ]
        return self._score(benchmark, found)

    def score(self, benchmark: Benchmark) -> Score:
        """The score of the answers that are there already."""
        return self._score(benchmark, list(self._file(benchmark, "answers").answers.values()))

    def has(self, benchmark: Benchmark) -> bool:
        """Whether there are answers."""
        return (self.results / f"{benchmark.name}.answers.jsonl").exists()

    def _judge(
        self,
        benchmark: Benchmark,
        questions: Sequence[Question],
        answers: AnswerFile,
        judge: Server,
    ) -> None:
        judgements = self._file(benchmark, "judgements")
        prompts: dict[str, Conversation] = {}
        for question in questions:
            answer = answers.answers[question.id]
            if not answer.error:
                prompts[question.id] = judge_messages(
                    question, answer.answer, with_images=self.judge_sees_images
                )
        # Two judges' judgements of one answer are two.
        wanted = {id_: digest([*each, {"judge": judge.model}]) for id_, each in prompts.items()}
        rateable = [each for each in questions if each.id in prompts]
        for _ in range(TRIES):
            lacking = [each for each in rateable if not judgements.has(each.id, wanted[each.id])]
            if not lacking:
                return
            _say(f"{benchmark.name}: {len(lacking)} answers to judge")
            asked = [prompts[each.id] for each in lacking]
            self._fill(judgements, lacking, wanted, asked, judge, MAX_TOKENS, needs_rating=True)

    def _fill(
        self,
        file: AnswerFile,
        questions: Sequence[Question],
        digests: Mapping[str, str],
        conversations: Sequence[Conversation],
        server: Server,
        max_tokens: int,
        *,
        needs_rating: bool = False,
    ) -> None:
        progress = _Progress(len(questions))
        for place, reply in server.ask(conversations, max_tokens, self.concurrency):
            question, error = questions[place], reply.error
            if needs_rating and not error and rating(reply.text) is None:
                error = "the judgement has no rating from 1 to 10"
            file.add(
                Answer(
                    id=question.id,
                    digest=digests[question.id],
                    question=question.text,
                    references=question.references,
                    answer=reply.text,
                    finish_reason=reply.finish_reason,
                    error=error,
                    groups=question.groups,
                )
            )
            progress.step(error)

    def _score(self, benchmark: Benchmark, answers: Sequence[Answer]) -> Score:
        judgements = self._file(benchmark, "judgements").answers if benchmark.is_judged else {}
        each = [scores_of(benchmark, answer, judgements.get(answer.id)) for answer in answers]
        lines = (
            json.dumps({**asdict(answer), "scores": found}, ensure_ascii=False) + "\n"
            for answer, found in zip(answers, each, strict=True)
        )
        scored = self.results / f"{benchmark.name}.scored.jsonl"
        scored.write_text("".join(lines), encoding="utf-8")
        return score(benchmark, answers, each)

    def _file(self, benchmark: Benchmark, kind: str) -> AnswerFile:
        return AnswerFile(self.results / f"{benchmark.name}.{kind}.jsonl")


def evenly(questions: Sequence[Question], limit: int | None) -> Sequence[Question]:
    """At most `limit` of them, at equal distances, because data sets are sorted by subject."""
    if limit is None or limit >= len(questions):
        return questions
    return [questions[place * len(questions) // limit] for place in range(limit)]


class _Progress:
    """A line on standard error every ten seconds, and one for the first failure.

    Many failures in a row raise `NoServer`: a server that is down fails every question.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = self._failed = self._in_a_row = 0
        self._next = time.monotonic() + _SECONDS_A_LINE

    def step(self, error: str) -> None:
        self._done += 1
        self._failed += bool(error)
        self._in_a_row = self._in_a_row + 1 if error else 0
        if error and self._failed == 1:
            _say(f"  a question failed: {error}")
        if self._in_a_row >= _MOST_FAILURES_IN_A_ROW:
            raise NoServer(f"{self._in_a_row} questions in a row failed, the last one: {error}")
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS_A_LINE
            _say(f"  {self._done} of {self._total}, {self._failed} failed")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
