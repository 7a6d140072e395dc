"""Each data set's form, and the requests that its rows become."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.evals import prompts, questions
from bench.evals.judge import judge_messages, rating
from bench.evals.questions import BadData, Question, Reader, read

ONE, TWO = "images/one.png", "images/two.png"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in (ONE, TWO):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def only(data: Path, reader: Reader, row: dict[str, Any]) -> Question:
    (question,) = many(data, reader, row)
    return question


def many(data: Path, reader: Reader, row: dict[str, Any]) -> list[Question]:
    file = data / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return list(read(file, reader))


def content(question: Question) -> list[Any]:
    """The last message's parts: texts, and names of images."""
    found = question.messages[-1]["content"]
    return [part.get("text") or part["image"].name for part in found]


def test_chartqa(data: Path) -> None:
    row = {"type": "human_test", "image": ONE, "question": "How many?", "answer": "14"}
    question = only(data, questions.chartqa, row)
    assert content(question) == ["one.png", f"How many?\n{prompts.CHARTQA}"]
    assert question.references == ("14",)


def test_docvqa(data: Path) -> None:
    row = {"questionId": "1", "image": ONE, "question": "Which?", "answers": ["itc", "ITC"]}
    question = only(data, questions.docvqa, row)
    prompt = "Answer the question using a single word or phrase."
    assert content(question) == ["one.png", f"Which?\n{prompt}"]
    assert question.references == ("itc", "ITC")


@pytest.mark.parametrize(
    "answers", [["red", "pink"], [{"answer": "red", "answer_id": 1}, {"answer": "pink"}]]
)
def test_vqav2_with_answers_of_both_forms(data: Path, answers: list[Any]) -> None:
    row = {"image": ONE, "question": "What colour?", "answers": answers}
    question = only(data, questions.vqav2, row)
    assert content(question) == ["one.png", f"What colour?\n{prompts.VQAV2}"]
    assert question.references == ("red", "pink")


def test_mathvista_asks_for_a_letter_where_there_are_choices(data: Path) -> None:
    row = {
        "decoded_image": ONE,
        "image": "images/1.jpg",  # the published column, which names no file here
        "query": "Hint: ...\nQuestion: Is it?",
        "choices": ["Yes", "No"],
        "answer": "No",
    }
    question = only(data, questions.mathvista, row)
    expected = f"Hint: ...\nQuestion: Is it?\n{prompts.CHOICE_OR_OPEN}"
    assert content(question) == ["one.png", expected]
    assert question.references == ("B",)
    open_row = row | {"choices": None, "answer": "1.2"}
    assert only(data, questions.mathvista, open_row).references == ("1.2",)


def test_mmmu_has_images_where_its_text_names_them(data: Path) -> None:
    row = {
        "question": "Given <image 1>, which fits?",
        "question_type": "multiple-choice",
        "options": "['a bear', '<image 2>']",
        "answer": "B",
        "image_1": ONE,
        "image_2": TWO,
        "image_3": None,
    }
    question = only(data, questions.mmmu, row)
    assert content(question) == [
        "Given ",
        "one.png",
        ", which fits?\nA. a bear\nB. ",
        "two.png",
        prompts.CHOICE_OR_OPEN,
    ]
    assert question.references == ("B",)


@pytest.mark.parametrize(
    ("answer", "references"), [("['24/7', '3.429']", ("24/7", "3.429")), ("551", ("551",))]
)
def test_mmmu_open(data: Path, answer: str, references: tuple[str, ...]) -> None:
    row = {"question": "<image 1> Sum?", "question_type": "open", "options": "[]"}
    question = only(data, questions.mmmu, row | {"answer": answer, "image_1": ONE})
    assert content(question) == ["one.png", f" Sum?\n{prompts.CHOICE_OR_OPEN}"]
    assert question.references == references


CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A chart."},
    {"role": "user", "content": [{"type": "text", "text": "Of what?"}]},
    {"role": "assistant", "content": "Of rain."},
]
BENCH_ROW = {"image": ONE, "category": "charts", "conversation": json.dumps(CONVERSATION)}


def test_mm_mt_bench_asks_each_turn_after_the_references(data: Path) -> None:
    first, second = many(data, questions.mm_mt_bench, BENCH_ROW)
    assert [first.id, second.id] == ["1.1", "1.2"]
    assert [first.references, second.references] == [("A chart.",), ("Of rain.",)]
    assert [first.groups, second.groups] == [
        {"category": "charts", "turn": "0"},
        {"category": "charts", "turn": "1"},
    ]
    assert content(first) == ["one.png", "What is it?"]
    assert [each["role"] for each in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1]["content"] == "A chart."
    assert second.messages[0]["content"] == first.messages[0]["content"]


def test_the_judge_sees_the_conversation_and_its_references(data: Path) -> None:
    second = many(data, questions.mm_mt_bench, BENCH_ROW)[1]
    system, user = judge_messages(second, "Of snow.")
    assert system == {"role": "system", "content": prompts.JUDGE}
    begin, image, rest = user["content"]
    assert begin["text"] == "<|The Start of Conversation with User|>\n\n### User:\n"
    assert image["image"] == data / ONE
    assert rest["text"] == (
        "What is it?\n\n### Reference answer:\nA chart.\n\n"
        "### User:\nOf what?\n\n### Reference answer:\nOf rain.\n\n"
        "\n\n### Assistant's answer:\nOf snow.\n\n<|The End of Conversation with User|>\n\n\n"
    )
    (alone,) = judge_messages(second, "Of snow.", with_images=False)[1]["content"]
    assert alone["text"] == begin["text"] + rest["text"]


@pytest.mark.parametrize(
    ("judgement", "expected"),
    [
        ("Good. Rating: [[7]]", 7.0),
        ("[[8.5]] and not [[2]]", 8.5),
        ("Rating: 7", None),
        ("Rating: [[70]]", None),
        ("Rating: [[0]]", None),
    ],
)
def test_rating(judgement: str, expected: float | None) -> None:
    assert rating(judgement) == expected


CHART = {"image": ONE, "question": "?", "answer": "1"}


@pytest.mark.parametrize(
    ("reader", "row", "reason"),
    [
        (questions.chartqa, {"image": ONE, "answer": "1"}, "no 'question'"),
        (questions.chartqa, CHART | {"image": "images/none.png"}, "image names no file"),
        (questions.chartqa, CHART | {"image": "images/../rows.jsonl"}, "image names no file"),
        (questions.chartqa, CHART | {"image": "/etc/hosts"}, "image names no file"),
        (questions.chartqa, CHART | {"image": {"bytes": "x"}}, "image is not text"),
        (questions.chartqa, CHART | {"answer": []}, "answer is neither text nor a list"),
        (
            questions.mathvista,
            {"decoded_image": ONE, "query": "?", "choices": ["a"], "answer": "b"},
            "'b' is not in list",
        ),
        (questions.mm_mt_bench, BENCH_ROW | {"conversation": CONVERSATION[1:3]}, "take turns"),
    ],
)
def test_a_row_of_another_form_is_refused_with_its_place(
    data: Path, reader: Reader, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadData, match=r"rows\.jsonl:1: .*" + reason):
        only(data, reader, row)


def test_an_image_counts_in_the_digest(data: Path) -> None:
    before = only(data, questions.chartqa, CHART).digest
    assert only(data, questions.chartqa, CHART).digest == before
    assert only(data, questions.chartqa, CHART | {"image": TWO}).digest != before
    (data / ONE).write_bytes(b"another one")
    assert only(data, questions.chartqa, CHART).digest != before
