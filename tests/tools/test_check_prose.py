"""The check of the prose."""

import pytest

from tools.check_prose import faults

# Sentences of this project that needed two readings.
OBSCURE = """
of its texts one sees the 2 ms that more processes take
Of Pixtral-12B's size, with everything on one GPU and stock vLLM in the same run
A picture that a tenant has sent or put within the hour can be named by its SHA-256
turns what is raised into a status; so it is at every tier
what it would refuse whatever it says is not even parsed
Of a gateway with several processes serving/workers.py is the one that keeps them
what is not there the client sends again
drops what would come too late for all who wait
nobody is told that he goes first and does not
Below 0, ahead of all who say nothing, may only a tenant whose highest_priority goes as far
A priority is no permit
It is an option for who needs the tenth
there it made nothing
What waits for a client that is slow to read becomes one message, and does not cost that again
What decodes cannot be stopped, only not waited for
Waiting behind another's load tells that there is some
One that is malformed changes nothing and is told in the log
What every process can be told is in settings.md
The embedding is checked and made its wire form; is put into Redis
By connections, not by requests
from the first that it is slow over on, takes them as they come, wanted yet or not
As far as it is of our own words: behind them come a client's, and pydantic's
Of which the device knows: one, and another behind it
Behind a piece is the end of a line
Until memory is had or given back: not while an embedding that was waited for goes on its way
the message is for whoever starts it
Numbers are those of Envoy, but for the half
a field that the model does not know is passed over
JSON is held to its schema, once the client asks
keeps so many streams open, and reads them to their ends
the time of the last answer; None where there was none
else random weights are made
""".strip().splitlines()

PLAIN = """
The extra processes add 2 ms, which shows for text.
For an hour after a tenant uploads a picture, requests can refer to it by its SHA-256.
Every tier does the same: it maps exceptions to gRPC statuses.
The server never accepts a priority that it cannot honour.
Priority does not bypass admission limits.
Load is balanced per connection, not per request.
What does `make demo` need?
Offices and bylaws begin with no such word.
It is not for users but for operators.
The process held to its limit ends at once.
So many connections close that the server notices.
There are not so many images as requests.
The page shows where the time goes, or else an error.
""".strip().splitlines()


def found(name: str, text: str) -> list[tuple[int, str]]:
    return list(faults(name, text))


@pytest.mark.parametrize("sentence", OBSCURE)
def test_a_sentence_that_needs_two_readings_is_found(sentence: str) -> None:
    assert found("docs/a.md", f"# Head\n\nIt begins. {sentence[0].upper()}{sentence[1:]}.\n")
    assert found("docs/a.md", f"| a | b |\n|---|---|\n| c | {sentence} |\n")
    assert found("a.py", f'"""Does.\n\n{sentence}.\n"""\n')
    assert found("a.py", f"x = 1\n# {sentence}.\n")


@pytest.mark.parametrize("sentence", PLAIN)
def test_a_plain_one_is_not(sentence: str) -> None:
    assert not found("docs/a.md", f"{sentence}\n")
    assert not found("a.py", f'"""{sentence}"""\n')


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.py", "raise Wrong('Of a key, nothing.')", 1),
        ("a.py", "\nlog.warning('By now %s', it)", 2),
        ("a.py", "Field(1, description='Of images: how many.')", 1),
        ("a.py", "parser.add_argument('--a', help='what is sent')", 1),
        ("a.py", "x = 1  # Of one.", 1),
        ("a.proto", "message A {\n  // What it is.\n}", 2),
        ("a.js", "/** Of no use. */", 1),
        ("a.yaml", "a: b\n# By itself it stays.", 2),
        ("Makefile", "run: ## What runs", 1),
        ("docs/a.md", "- One.\n- By two.", 2),
        ("docs/a.md", "It is\nso. Of\nthem all.", 1),
    ],
)
def test_prose_is_found_wherever_somebody_reads_it(name: str, text: str, line: int) -> None:
    ((at, _),) = found(name, text)
    assert at == line


@pytest.mark.parametrize(
    "text",
    [
        "## What it needs",
        "```\nBy hand\n```",
        "| what | of |\n|---|---|\n| a | b |",
        "<!-- What -->",
    ],
)
def test_heads_and_code_are_no_sentences(text: str) -> None:
    assert not found("docs/a.md", text)


def test_code_of_python_is_no_prose() -> None:
    assert not found("a.py", 'NAMES = {"of": "What a name"}\nprint("By hand")\n')


def test_docs_describe_the_present_but_for_the_changelog_and_dated_benchmarks() -> None:
    text = "An earlier build took longer."
    assert found("docs/performance.md", text)
    assert not found("CHANGELOG.md", text)
    assert not found("docs/benchmarks/2026-11.md", text)
    assert not found("docs/release-notes/0.1.0.md", text)


@pytest.mark.parametrize(
    "text",
    [
        "It changed nothing before.",
        "A record is written as before, and read.",
        "Go back to the one before; then wait.",
        "Since then it takes less.",
        "The gateway used to take more.",
    ],
)
def test_a_page_compares_with_no_past(text: str) -> None:
    assert found("docs/performance.md", text)
    assert not found("CHANGELOG.md", text)
    assert not found("a.py", f"# {text}\n")


@pytest.mark.parametrize(
    "text",
    ["Before the first token, nothing is lost.", "It reads the header before it decodes an image."],
)
def test_a_page_may_say_what_comes_first(text: str) -> None:
    assert not found("docs/performance.md", text)
