"""Parses a question as a person types it: its text, and the images that it names."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pixtral_cli.plain_output import WrongArgument
from pixtral_client.image_fetch import fetch
from pixtral_client.messages import has_image_suffix

# `@name`, or text that may be a path: in quotes, with escaped spaces, or a single word.
_NAME = re.compile(
    r"""(?:(?<=[\s(\[])|^)(?P<at>@?)
    (?:"(?P<double>[^"\n]+)"|'(?P<single>[^'\n]+)'|(?P<word>(?:\\.|[^\s\\"'])+))""",
    re.VERBOSE,
)
_QUOTED = re.compile(r"(`[^`\n]*`)")
_AFTER = re.compile(r"[,.;:!?)\]]+$")
_WEB = ("http://", "https://")


class NoSuchImage(WrongArgument):
    """A question names an image that cannot be read, and nothing was sent."""


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image of a question, and the person's name for it."""

    name: str
    data: bytes


def load_image(name: str) -> ShownImage:
    """The image at a path, a `file:` URL or an http(s) URL. Raises NoSuchImage."""
    try:
        return ShownImage(name, fetch(name) if name.startswith(_WEB) else _path(name).read_bytes())
    except IsADirectoryError:
        raise NoSuchImage(f"{name} is a directory: name an image in it") from None
    except OSError as error:
        raise NoSuchImage(f"{name} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise NoSuchImage(f"{name} cannot be read: {error}") from None


def parse(line: str) -> list[str | ShownImage]:
    """Splits a question at the images that it names.

    An image is `@name`, or a path or URL with the suffix of an image file. A name may be in quotes,
    have escaped spaces, or be a `file:` URL; a terminal writes such names when a file is dragged
    into it. Text in `backquotes` never names an image.

    Raises:
        NoSuchImage: a word looks like the name of an image, but there is no such image.
    """
    parts: list[str | ShownImage] = []
    text = ""
    for piece in _QUOTED.split(line):
        if _QUOTED.fullmatch(piece):
            text += piece
            continue
        start = 0
        for match in _NAME.finditer(piece):
            found = _image(match)
            if found is not None:
                image, end = found
                text += piece[start : match.start()]
                parts += [text.strip(), image]
                text, start = "", end
        text += piece[start:]
    parts.append(text.strip())
    return [part for part in parts if part]


def _image(match: re.Match[str]) -> tuple[ShownImage, int] | None:
    """The image that a match names, and the end of its name."""
    quoted = match["double"] or match["single"]
    if quoted is not None:
        if not (match["at"] or has_image_suffix(quoted)):
            return None
        return load_image(quoted), match.end()
    word = match["word"]
    # The word may end with the punctuation of the sentence. A file whose name includes the
    # punctuation has priority.
    shorter = len(word) - len(_ending(word))
    for end in (len(word), shorter) if not word.startswith(_WEB) else (shorter,):
        name = re.sub(r"\\(.)", r"\1", word[:end])
        if _is_image(name, has_at=bool(match["at"])):
            return load_image(name), match.start("word") + end
    name = re.sub(r"\\(.)", r"\1", word[:end])
    if _looks_like_image(name, has_at=bool(match["at"])):
        if _exists(name, Path.is_dir):
            raise NoSuchImage(f"{name} is a directory: name an image in it")
        raise NoSuchImage(
            f"there is no image {name}: nothing was sent; write `{name}` in backquotes to speak of "
            "it without showing it"
        )
    return None


def _is_image(name: str, *, has_at: bool) -> bool:
    is_web = name.startswith(_WEB)
    if not has_at and not has_image_suffix(urlsplit(name).path if is_web else name):
        return False
    return is_web or _exists(name, Path.is_file)


def _looks_like_image(name: str, *, has_at: bool) -> bool:
    if has_at and ("/" in name or _exists(name, Path.is_dir)):
        return True
    stem = name.rpartition(".")[0].rpartition("/")[2]
    # A mail address is not the name of an image, and neither is a suffix alone.
    return has_image_suffix(name) and bool(stem) and "@" not in name


def _ending(word: str) -> str:
    found = _AFTER.search(word)
    return found[0] if found else ""


def _path(name: str) -> Path:
    if name.startswith("file://"):
        return Path(unquote(urlsplit(name).path))
    return Path(name).expanduser()


def _exists(name: str, check: Callable[[Path], bool]) -> bool:
    try:
        return check(_path(name))
    except (OSError, ValueError, RuntimeError):
        return False


def whole_questions(read: Callable[[bool], str | None]) -> Iterator[str]:
    """Joins lines into questions. A question continues after a backslash at the end of a line, and
    between three quotes and the next three quotes.

    `read` returns the next line, or None at the end. Its argument says whether a question
    continues.
    """
    while (line := read(False)) is not None:
        if line.lstrip().startswith('"""'):
            line = line.lstrip()[3:]
            while not line.rstrip().endswith('"""'):
                more = read(True)
                if more is None:
                    break
                line += f"\n{more}"
            yield line.rstrip().removesuffix('"""').strip()
            continue
        while line.endswith("\\"):
            more = read(True)
            line = f"{line[:-1]}\n{more or ''}"
        yield line.strip()
