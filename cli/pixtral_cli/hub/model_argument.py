"""The model of a command: a directory, or the id of a repository on Hugging Face's hub."""

import re
from pathlib import Path

from pixtral_cli.extras import MissingExtra
from pixtral_cli.hub.failures import PullError
from pixtral_cli.hub.pull import cached, print_note, pull
from pixtral_cli.plain_output import WrongArgument

_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_hub_id(model: Path) -> bool:
    """Whether an argument names a repository. An argument that is an existing path does not."""
    return _ID.fullmatch(str(model)) is not None and not model.exists()


def model_directory(model: Path, revision: str | None = None) -> Path:
    """The directory of a model. For a repository's id, it is the snapshot in Hugging Face's cache;
    a missing snapshot is fetched first.

    Raises:
        WrongArgument: `revision` is set, and the model is a directory.
        PullError, MissingExtra: as from `pull`.
    """
    if (there := _directory_or_cached(model, revision)) is not None:
        return there
    try:
        return pull(str(model), revision)
    except PullError as error:
        # A path with a spelling mistake looks like a repository's id.
        raise PullError(f"no directory {model} here; and {error}") from error


def model_here(model: Path, revision: str | None = None) -> Path:
    """The same as `model_directory`, for a command that does not fetch a model.

    If the model is missing, raises PullError with the command that fetches it.
    """
    if (there := _directory_or_cached(model, revision)) is not None:
        return there
    more = "" if revision is None else f" --revision {revision}"
    raise PullError(
        f"no directory {model} here, and no whole model of this id in Hugging Face's cache: "
        f"pixtral-serve pull {model}{more}"
    )


def _directory_or_cached(model: Path, revision: str | None) -> Path | None:
    if not is_hub_id(model):
        if revision is not None:
            raise WrongArgument(f"--revision is for a repository's id, and {model} is a directory")
        return model
    try:
        there = cached(str(model), revision)
    except MissingExtra as error:
        raise MissingExtra(f"no directory {model} here; and {error}") from error
    if there is not None:
        print_note(f"{model}: commit {there.name}, from {there}")
    return there
