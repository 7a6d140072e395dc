"""`pixtral-serve chat`: one question, or a conversation with images at any turn."""

import argparse
import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pixtral.v1 import chat_pb2
from pixtral_cli.plain_output import print_error
from pixtral_cli.question import ShownImage, load_image, parse, whole_questions
from pixtral_cli.terminal import console, print_answer
from pixtral_client import Client, InvalidRequest, PixtralError, Tls
from pixtral_client.messages import has_image_suffix, to_protos
from pixtral_client.requests import Options, Sampling, chat_request

FAILED, WRONG, CUT, STOPPED = 1, 2, 3, 130
HELP = """\
cat.jpg, @cat.jpg, https://…/cat.jpg    in a question show an image; drag a file in for its path
/image PATH_OR_URL                      shows one with the next question
/system [TEXT]                          sets the system message, or removes it
/model [NAME]                           takes another model, or lists them
/set [NAME [VALUE]]                     sets an option such as temperature, unsets it, or lists them
/save FILE, /load FILE                  the conversation as JSON, in the form of OpenAI's API
/reset, /quit                           begins anew; ends, as Ctrl-D does
A backslash at the end of a line, or \"\"\" before and after, makes a question of several lines.
Tab completes paths; Ctrl-C stops an answer."""
_SIGNATURES = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


def run_chat(options: argparse.Namespace) -> int:
    """Returns one of the exit codes of `--help`."""
    # Standard output contains only the answer, so that a script can read it.
    console.stderr = True
    files = (options.tls_ca, options.tls_certificate, options.tls_private_key)
    tls = Tls(*files) if options.tls or any(files) else None
    sampling: Sampling = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    with Client(options.target, tls=tls) as client:
        conversation = Conversation(client, options.model, sampling, is_plain=options.plain)
        if options.system:
            conversation.system = options.system
        for name in options.image:
            conversation.add_image(name)
        if options.question:
            return conversation.ask(options.question)
        return conversation.converse(keeps_history=not options.no_history)


class Conversation:
    """The turns of a conversation. Images are stored as bytes, so each is read or fetched once."""

    def __init__(
        self, client: Client, model: str | None, sampling: Sampling, *, is_plain: bool = False
    ) -> None:
        self._client = client
        self._model = model
        self._sampling: dict[str, Any] = {k: v for k, v in sampling.items() if v is not None}
        self._is_plain = is_plain
        self._turns: list[dict[str, Any]] = []
        self._images: list[ShownImage] = []
        self.system = ""

    @property
    def _messages(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self._turns]

    def add_image(self, name: str) -> None:
        """Adds an image to the next question."""
        self._images.append(load_image(name))

    def ask(self, question: str) -> int:
        """Prints the answer. Returns 0 if it is complete, CUT if it was cut, STOPPED after Ctrl-C.

        If the answer was stopped by Ctrl-C, its text stays in the conversation. After an error, the
        conversation does not have the question, nor any part of the answer.

        Raises:
            NoSuchImage: an image of the question cannot be read, and nothing was sent.
            PixtralError: there is no answer, or it broke off.
        """
        content = [*self._images, *parse(question)]
        shown = [part.data if isinstance(part, ShownImage) else _text(part) for part in content]
        turn = {"role": "user", "content": shown}
        messages = [*self._messages, turn]
        stream = self._client.stream(messages, model=self._model, **self._options())
        code = 0
        with stream:
            try:
                print_answer(stream, is_plain=self._is_plain)
            except KeyboardInterrupt:
                console.print("[dim]stopped[/]")
                code = STOPPED
            except PixtralError as error:
                _name_images(error, content, f"messages[{len(messages) - 1}].content")
                if isinstance(error, InvalidRequest):
                    # An image may be the cause. The images are removed, so that the next question
                    # does not fail as well.
                    self._images = []
                raise
        if stream.text:
            self._turns += [turn, {"role": "assistant", "content": stream.text}]
            self._images = []
        completion = stream.completion
        if completion is None or completion.finish_reason != "length":
            return code
        count = completion.usage.completion_tokens
        most = self._sampling.get("max_tokens")
        why = (
            f"cut at {count} tokens: --max-tokens or /set max_tokens allows more"
            if most is not None and count >= most
            else f"cut at {count} tokens: the model's context is full; /reset begins anew"
        )
        console.print(f"[yellow]{why}[/]")
        return CUT

    def command(self, line: str) -> bool:
        """Runs a line that begins with a slash. Returns False at the end of the conversation.

        Raises OSError, ValueError and TypeError for a wrong argument.
        """
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        match name:
            case "/quit" | "/exit" | "/bye":
                return False
            case "/help" | "/?":
                console.print(HELP, style="dim", markup=False)
            case "/reset":
                self._turns, self._images = [], []
                _note("a new conversation")
            case "/image" if argument:
                self.add_image(argument.strip("\"'"))
                _note("shown with the next question")
            case "/system":
                self.system = argument
                _note("the system message is set" if argument else "no system message")
            case "/model":
                self._choose_model(argument)
            case "/set":
                self._set(*argument.partition(" ")[::2])
            case "/save" if argument:
                self._save(Path(argument).expanduser())
                _note(f"saved in {argument}")
            case "/load" if argument:
                self._load(Path(argument).expanduser())
                _note(f"{len(self._turns)} messages from {argument}")
            case _:
                if name in COMMANDS:
                    raise ValueError(f"{name} needs an argument")
                raise ValueError(f"there is no command {name}: /help lists them")
        return True

    def converse(self, *, keeps_history: bool = False) -> int:
        """Reads questions from the terminal, or lines from standard input, until the end. Returns
        the exit code."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            _note("/help lists the commands; Ctrl-D ends")
        codes = set()
        for line in whole_questions(_reader(is_terminal, keeps_history)):
            try:
                if _is_command(line):
                    if not self.command(line):
                        break
                elif line and self.ask(line) == CUT:
                    codes.add(CUT)
            except (OSError, ValueError, TypeError, PixtralError) as error:
                print_error(error)
                codes.add(FAILED if isinstance(error, PixtralError) else WRONG)
        # On a terminal, a person has seen each error. A script sees only the exit code, which is
        # that of the most serious error.
        return 0 if is_terminal else min(codes, default=0)

    def _options(self) -> Options:
        options: Any = self._sampling
        return options  # type: ignore[no-any-return]

    def _choose_model(self, name: str) -> None:
        models = [model.name for model in self._client.models()]
        if not name:
            for each in models:
                console.print(f"{'*' if each == self._model else ' '} {each}", markup=False)
            return
        if name not in models:
            raise ValueError(f"no model {name}; there are {', '.join(models)}")
        self._model = name
        _note(f"{name} is the model from now on")

    def _set(self, name: str, value: str) -> None:
        if not name:
            for each, known in self._sampling.items():
                console.print(f"  {each} {json.dumps(known)}", markup=False)
            return
        if name not in Sampling.__annotations__:
            raise ValueError(f"no option {name}: {', '.join(Sampling.__annotations__)}")
        changed = {key: known for key, known in self._sampling.items() if key != name}
        if value:
            try:
                changed[name] = json.loads(value)
            except ValueError:
                changed[name] = value
        # This makes the checks that are made before a request is sent, and raises their errors.
        chat_request(chat_pb2.CompleteRequest, [], None, changed)
        self._sampling = changed
        _note(f"{name} is {value or 'the default'}")

    def _save(self, path: Path) -> None:
        messages = [
            {**turn, "content": [_as_openai(part) for part in turn["content"]]}
            if isinstance(turn["content"], list)
            else turn
            for turn in self._messages
        ]
        text = json.dumps({"model": self._model, "messages": messages}, indent=1)
        path.write_text(f"{text}\n", "utf-8")

    def _load(self, path: Path) -> None:
        try:
            saved = json.loads(path.read_text("utf-8"))
            messages = saved["messages"] if isinstance(saved, dict) else saved
            to_protos(messages)
        except (KeyError, UnicodeDecodeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has no conversation: {error}") from None
        first = messages[0] if messages else {}
        has_system = first.get("role") == "system" and isinstance(first.get("content"), str)
        self.system = first["content"] if has_system else ""
        self._turns = list(messages[1:] if has_system else messages)
        self._images = []


COMMANDS = (
    *("/help", "/image", "/system", "/model", "/set", "/save", "/load", "/reset", "/quit"),
    *("/?", "/exit", "/bye"),
)


def _is_command(line: str) -> bool:
    """Whether a line is a command, rather than a question that begins with a path."""
    word = line.partition(" ")[0]
    if word in COMMANDS:
        return True
    return word.startswith("/") and "/" not in word[1:] and not has_image_suffix(word)


def _reader(is_terminal: bool, keeps_history: bool) -> Callable[[bool], str | None]:
    if is_terminal:
        # This import is here because a question on the command line needs no line editor.
        from pixtral_cli.line_editor import LineEditor

        return LineEditor(COMMANDS, keeps_history=keeps_history).read
    lines: Iterator[str] = (line.rstrip("\r\n") for line in sys.stdin)
    return lambda _: next(lines, None)


def _name_images(error: PixtralError, content: list[Any], where: str) -> None:
    """Adds notes to an error that name the images to which its fields refer."""
    for number, part in enumerate(content):
        field = f"{where}[{number}]."
        if isinstance(part, ShownImage) and any(
            violation.field.startswith(field) for violation in error.violations
        ):
            error.add_note(f"{field.removesuffix('.')} is {part.name}")


def _as_openai(part: Any) -> Any:
    if not isinstance(part, bytes):
        return part
    form = next((form for sign, form in _SIGNATURES if part.startswith(sign)), "*")
    url = f"data:image/{form};base64,{base64.b64encode(part).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _note(text: str) -> None:
    console.print(text, style="dim", markup=False)
