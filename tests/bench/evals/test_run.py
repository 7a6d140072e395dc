"""The command, from rows to the table, before a stand-in for model and judge."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.evals import prompts
from bench.evals.__main__ import main
from tests.support import fake_gateway
from tests.support.gateway_pictures import picture
from tests.support.openai_stand_in import Body, StandIn, serving, text_of

PNG = picture(40, 30)
IMAGE = "images/one.png"
TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A chart."},
    {"role": "user", "content": [{"type": "text", "text": "Which one?"}]},
    {"role": "assistant", "content": "Of rain."},
]
# Each question names its own answer; the scores are worked out beside the references.
ROWS: dict[str, list[dict[str, Any]]] = {
    "mmmu": [
        {
            "question": f"<image 1> say<<{said}>>",
            "question_type": "multiple-choice",
            "options": "['a', 'b']",
            "answer": "B",
            "image_1": IMAGE,
        }
        for said in ("Final Answer: B", "Final Answer: A", "It is b", "**Answer:** B. b")
    ],  # right, wrong, right by the generous metric alone ("is b"), right: 50% and 75%
    "mathvista": [
        {"decoded_image": IMAGE, "query": "say<<Answer: 1.2>>", "choices": None, "answer": "1.2"},
        {"decoded_image": IMAGE, "query": "say<<Answer: A>>", "choices": ["x", "y"], "answer": "y"},
    ],  # right, wrong: 50%
    "chartqa": [
        {"image": IMAGE, "question": f"say<<Final Answer: {said}>>", "answer": "100"}
        for said in ("100", "104", "106", "95%")
    ],  # right, within 5%, not, within 5%: 75%
    "docvqa": [
        {"image": IMAGE, "question": "say<<kitten>>", "answers": ["sitting"]},
        {"image": IMAGE, "question": "say<<ITC limited.>>", "answers": ["x", "itc limited"]},
    ],  # 4/7 and 1: 78.571%
    "vqav2": [
        {
            "image": IMAGE,
            "question": f"say<<{said}>>",
            "answers": [{"answer": each} for each in ("yes", "yes", "no", "no", "no", "maybe")],
        }
        for said in ("yes", "no", "No")
    ],  # 2/3, 1 and 0: 55.556%
    "mm_mt_bench": [
        {"image": IMAGE, "category": "charts", "conversation": json.dumps(TURNS)},
        {"image": IMAGE, "category": "tables", "conversation": json.dumps(TURNS[:2])},
    ],  # rated 9 for a first turn and 3 for a second: 9, 3, 9
}
JUDGED = ["--judge-model", "judge"]


def answer(body: Body) -> str:
    if body["model"] == "judge":
        return "Rating: [[3]]" if "Which one?" in text_of(body) else "Rating: [[9]]"
    _, _, said = text_of(body).partition("say<<")
    return said.partition(">>")[0] or "Something."


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn(answer)


@pytest.fixture
def url(stand_in: StandIn) -> Iterator[str]:
    with serving(stand_in) as address:
        yield address


Evals = Callable[..., int]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / IMAGE).write_bytes(PNG)
    return tmp_path / "data"


@pytest.fixture
def evals(url: str, data: Path, tmp_path: Path) -> Evals:
    """Runs the command in directories of the test's own, with data for these benchmarks."""

    def run(*names: str, more: tuple[str, ...] = (), to: str = url) -> int:
        for name in names:
            lines = "".join(json.dumps(row) + "\n" for row in ROWS[name])
            (data / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        directories = ["--data", str(data), "--results", str(tmp_path / "results")]
        return main(["--url", to, *directories, *more])

    return run


def scores(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "results" / "scores.json").read_text("utf-8"))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_the_table_has_each_benchmark_beside_the_card(
    evals: Evals, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evals(*ROWS, more=("--judge-url", url, *JUDGED)) == 0
    table = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2:8]]
    assert cells == [
        ["MMMU (CoT)", "50.0 ± 56.6", "52.5", "4 of 4", "0"],
        ["MathVista (CoT)", "50.0 ± 98.0", "58.0", "2 of 2", "0"],
        ["ChartQA (CoT)", "75.0 ± 49.0", "81.8", "4 of 4", "0"],
        ["DocVQA (ANLS)", "78.6 ± 42.0", "90.7", "2 of 2", "0"],
        ["VQAv2 (VQA Match)", "55.6 ± 57.6", "78.6", "3 of 3", "0"],
        ["MM-MT-Bench", "7.00 ± 3.92", "6.05", "3 of 3", "0"],
    ]
    assert "https://huggingface.co/mistralai/Pixtral-12B-2409" in "\n".join(table[8:])
    written = scores(tmp_path)
    assert (written["model"], written["url"], written["judge"]) == ("stand-in", url, "judge")
    found = {name: each["metrics"] for name, each in written["benchmarks"].items()}
    assert found["mmmu"] == {
        "explicit_prompt_relaxed_correctness": 0.5,
        "anywhere_in_answer_relaxed_correctness": 0.75,
    }
    assert found["docvqa"] == pytest.approx({"anls": 5.5 / 7, "anls_of_leaderboard": 5.5 / 7})
    assert found["vqav2"] == pytest.approx({"vqa_match": 5 / 9, "vqa_match_any_case": 8 / 9})
    # Charts have 9 and 3, tables 9; first turns 9 and 9, the second 3.
    assert found["mm_mt_bench"] == {
        "micro_average_score": 7.0,
        "macro_average_score": (6 + 9 + 9 + 3) / 4,
        "charts_average": 6.0,
        "tables_average": 9.0,
        "0_average": 9.0,
        "1_average": 3.0,
    }


def test_a_request_is_that_of_mistral_evals(evals: Evals, stand_in: StandIn) -> None:
    evals("docvqa", more=("--concurrency", "1"))
    first = stand_in.requests[0]
    image = "data:image/png;base64," + base64.b64encode(PNG).decode()
    text = f"say<<kitten>>\n{prompts.DOCVQA}"
    assert first == {
        "model": "stand-in",
        "temperature": 0.0,
        "max_tokens": 10,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": image}},
                    {"type": "text", "text": text},
                ],
            }
        ],
    }


def test_each_answer_is_written_with_its_scores(evals: Evals, tmp_path: Path) -> None:
    evals("docvqa")
    first = lines(tmp_path / "results" / "docvqa.scored.jsonl")[0]
    assert first["question"] == f"say<<kitten>>\n{prompts.DOCVQA}"
    assert (first["answer"], first["references"]) == ("kitten", ["sitting"])
    assert first["scores"] == pytest.approx({"anls": 4 / 7, "anls_of_leaderboard": 4 / 7})


def test_a_run_goes_on_where_it_was_ended(evals: Evals, stand_in: StandIn, tmp_path: Path) -> None:
    evals("chartqa", more=("--concurrency", "1"))
    answers = tmp_path / "results" / "chartqa.answers.jsonl"
    whole = answers.read_bytes()
    # It was killed in the middle of the third line.
    second = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    answers.write_bytes(whole[: second + 20])
    stand_in.requests.clear()
    assert evals(more=("--concurrency", "1")) == 0
    assert ["106" in text_of(each) for each in stand_in.requests] == [True, False]
    assert answers.read_bytes() == whole
    stand_in.requests.clear()
    evals()
    assert stand_in.requests == []


def test_a_question_that_changed_is_asked_again(
    evals: Evals, stand_in: StandIn, data: Path
) -> None:
    evals("chartqa")
    stand_in.requests.clear()
    file = data / "chartqa.jsonl"
    file.write_text(file.read_text("utf-8").replace("106", "101"), encoding="utf-8")
    assert evals() == 0
    assert ["101" in text_of(each) for each in stand_in.requests] == [True]


def test_a_reference_that_changed_counts_without_asking(
    evals: Evals, stand_in: StandIn, data: Path, tmp_path: Path
) -> None:
    evals("docvqa")
    stand_in.requests.clear()
    file = data / "docvqa.jsonl"
    file.write_text(file.read_text("utf-8").replace("sitting", "kitten"), encoding="utf-8")
    evals()
    assert stand_in.requests == []
    assert scores(tmp_path)["benchmarks"]["docvqa"]["value"] == 100.0


def test_a_line_of_answers_that_is_none_is_refused(
    evals: Evals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evals("docvqa")
    file = tmp_path / "results" / "docvqa.answers.jsonl"
    file.write_text("{}\n" + file.read_text("utf-8"), encoding="utf-8")
    assert evals() == 2
    assert "docvqa.answers.jsonl:1 is not an answer" in capsys.readouterr().err


def test_answers_are_scored_again_without_a_server(
    evals: Evals, stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evals("chartqa")
    answers = tmp_path / "results" / "chartqa.answers.jsonl"
    answers.write_text(answers.read_text("utf-8").replace("106", "101"), encoding="utf-8")
    stand_in.requests.clear()
    assert main(["--score-only", "--results", str(tmp_path / "results")]) == 0
    assert "100.0 ± 0.0" in capsys.readouterr().out
    assert scores(tmp_path)["benchmarks"]["chartqa"]["value"] == 100.0
    assert stand_in.requests == []


def test_a_judge_is_asked_for(
    evals: Evals, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evals("mm_mt_bench", "docvqa") == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "mm_mt_bench needs a judge: give --judge-url and --judge-model, or leave it out by --only\n"
    )
    assert (captured.out, stand_in.requests) == ("", [])
    assert evals(more=("--only", "docvqa")) == 0


def test_a_judgement_without_a_rating_is_asked_for_again(
    evals: Evals, stand_in: StandIn, url: str, data: Path, tmp_path: Path
) -> None:
    judgements = iter(["Good.", "Rating: [[8]]"] + ["None."] * 3 + ["Rating: [[6]]"])
    stand_in.answer = lambda body: next(judgements) if body["model"] == "judge" else "Rain."
    flags = ("--judge-url", url, *JUDGED, "--concurrency", "1")
    text = "".join(json.dumps(row) + "\n" for row in ROWS["mm_mt_bench"][1:] * 2)
    (data / "mm_mt_bench.jsonl").write_text(text, encoding="utf-8")
    assert evals(more=flags) == 1
    found = scores(tmp_path)["benchmarks"]["mm_mt_bench"]
    assert (found["questions"], found["scored"], found["value"]) == (2, 1, 8.0)
    # The next run asks the judge alone, and only about the answer that has no rating.
    stand_in.requests.clear()
    assert evals(more=flags) == 0
    assert [each["model"] for each in stand_in.requests] == ["judge", "judge"]
    assert scores(tmp_path)["benchmarks"]["mm_mt_bench"]["value"] == 7.0


def test_another_judge_judges_anew(evals: Evals, stand_in: StandIn, url: str) -> None:
    evals("mm_mt_bench", more=("--judge-url", url, *JUDGED))
    stand_in.requests.clear()
    stand_in.answer = lambda body: "Rating: [[5]]"
    assert evals(more=("--judge-url", url, "--judge-model", "stricter")) == 0
    assert [each["model"] for each in stand_in.requests] == ["stricter"] * 3


def test_a_refusal_is_waited_out(evals: Evals, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.failures = [(429, {"Retry-After": "0"})] * 10 + [(503, {"Retry-After": "0"})]
    assert evals("docvqa", more=("--concurrency", "1")) == 0
    assert len(stand_in.requests) == 13
    assert scores(tmp_path)["benchmarks"]["docvqa"]["scored"] == 2


def test_a_question_that_fails_is_no_score_and_is_asked_again(
    evals: Evals, stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.failures = [(400, {})]
    assert evals("docvqa", more=("--concurrency", "1")) == 1
    captured = capsys.readouterr()
    assert "a question failed: 400: refused with 400" in captured.err
    assert "DocVQA (ANLS): 1 questions have no score" in captured.out
    assert scores(tmp_path)["benchmarks"]["docvqa"]["value"] == 100.0
    assert evals() == 0
    assert scores(tmp_path)["benchmarks"]["docvqa"]["value"] == pytest.approx(550 / 7)


def test_a_run_ends_when_every_question_fails(
    evals: Evals, stand_in: StandIn, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.failures = [(401, {})] * 200
    lines = "".join(json.dumps(row) + "\n" for row in ROWS["chartqa"] * 50)
    (data / "chartqa.jsonl").write_text(lines, encoding="utf-8")
    assert evals(more=("--concurrency", "2")) == 2
    assert "50 questions in a row failed, the last one: 401" in capsys.readouterr().err
    assert len(stand_in.requests) < 60


def test_answers_that_were_cut_are_counted(evals: Evals, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.finish_reason = "length"
    evals("docvqa")
    assert scores(tmp_path)["benchmarks"]["docvqa"]["cut"] == 2


def test_a_limit_takes_questions_from_the_whole_data_set(
    evals: Evals, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    evals("chartqa", more=("--limit", "2", "--concurrency", "1"))
    assert [text_of(each).split(">>")[0][-3:] for each in stand_in.requests] == ["100", "106"]
    assert "2 of 2" in capsys.readouterr().out


def test_answers_of_two_models_are_not_mixed(
    evals: Evals, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    evals("docvqa")
    stand_in.models = ["another"]
    capsys.readouterr()
    assert evals() == 2
    assert "has answers of stand-in: give another --results" in capsys.readouterr().err


def test_one_benchmark_leaves_the_scores_of_the_others(evals: Evals, tmp_path: Path) -> None:
    evals("docvqa", "chartqa")
    evals(more=("--only", "docvqa"))
    assert sorted(scores(tmp_path)["benchmarks"]) == ["chartqa", "docvqa"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name the server"),
        (["--url", "localhost:1"], "is no URL of a server"),
        (["--url", "http://127.0.0.1:1"], "does not name a model"),
        (["--url", "http://127.0.0.1:1", "--only", "vqav2"], r"has no vqav2\.jsonl"),
        (["--score-only"], "needs --results DIR"),
        (["--only", "docvqa"], r"docvqa\.jsonl has no rows"),
    ],
)
def test_a_run_that_cannot_begin_says_why_in_a_line(
    arguments: list[str],
    reason: str,
    data: Path,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (data / "docvqa.jsonl").write_text("", encoding="utf-8")
    if arguments[:1] == ["--only"]:
        arguments = [*arguments, "--url", url, "--results", str(tmp_path / "results")]
    assert main([*arguments, "--data", str(data)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(reason, error)


def test_bad_data_is_found_before_anything_is_asked(
    evals: Evals, stand_in: StandIn, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "docvqa.jsonl").write_text('{"image": "images/one.png"}\n', encoding="utf-8")
    assert evals() == 2
    assert "docvqa.jsonl:1: no 'question'" in capsys.readouterr().err
    assert stand_in.requests == []


def test_the_keys_of_server_and_judge_come_from_the_environment(
    evals: Evals, stand_in: StandIn, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", "of-the-server")
    monkeypatch.setenv("JUDGE_API_KEY", "of-the-judge")
    assert evals("mm_mt_bench", more=("--judge-url", f"{url}/v1", *JUDGED)) == 0
    keys = dict(zip([each["model"] for each in stand_in.requests], stand_in.keys, strict=True))
    assert keys == {"stand-in": "Bearer of-the-server", "judge": "Bearer of-the-judge"}


def test_the_gateway_is_asked_over_grpc(evals: Evals, tmp_path: Path) -> None:
    gateway = fake_gateway.FakeGateway()
    with fake_gateway.serving(gateway) as target:
        assert evals("docvqa", to=f"grpc://{target}") == 0
    found = lines(tmp_path / "results" / "docvqa.answers.jsonl")
    assert [each["answer"] for each in found] == ["A cat on a mat."] * 2
    chats = [request.chat for request in gateway.requests if hasattr(request, "chat")]
    assert {(chat.sampling.max_tokens, chat.sampling.temperature) for chat in chats} == {(10, 0.0)}
    assert PNG in [part.image.data for chat in chats for part in chat.messages[0].content]
