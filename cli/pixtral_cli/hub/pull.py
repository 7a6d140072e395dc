"""Fetches a model from Hugging Face's hub with huggingface_hub, at one commit."""

import argparse
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pixtral_cli.checkpoint_report import HUGGING_FACES, MISTRALS, Form, check_model
from pixtral_cli.extras import MissingExtra, install_command
from pixtral_cli.hub.failures import PullError, failures_of_hub, no_room, size
from pixtral_cli.hub.model_files import NotServed, files_of_model, form_of_files
from pixtral_cli.plain_output import print_line, printable

DEFAULT_REVISION = "main"
# A file with the name of the repository and the commit. It is written when all files of the model
# are in the directory. The pods of deploy/ wait for it.
COMPLETE = ".complete"
# If a progress bar is not on a terminal, it writes a new line at each update.
SECONDS_BETWEEN_LINES = "30"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Found:
    """The model of a repository at a commit.

    Attributes:
        form: name of the checkpoint's form, for people.
        files: names of the files that the tiers read.
    """

    model: str
    revision: str
    commit: str
    form: str
    files: tuple[str, ...]


def run_pull(options: argparse.Namespace) -> int:
    """Prints the directory on standard output, and everything else on standard error."""
    print_line(str(pull(options.model, options.revision, options.to)))
    return 0


def pull(model: str, revision: str | None = None, to: Path | None = None) -> Path:
    """Fetches the missing files of a model.

    Args:
        model: a repository's id, such as `mistralai/Pixtral-12B-2409`.
        revision: a branch, tag or commit; None for the branch `main`.
        to: the directory for the files; None for Hugging Face's cache.

    Returns the directory with the files.

    Raises:
        PullError: the model cannot be fetched, or the tiers cannot serve it.
        MissingExtra: huggingface_hub is not installed.
    """
    _require_library()
    revision = revision or DEFAULT_REVISION
    if to is None and _is_offline() and (there := cached(model, revision)):
        return there
    with failures_of_hub(model, revision):
        found = _find(model, revision)
        print_note(f"{model}, revision {revision}: commit {found.commit}")
        target = _cache() if to is None else to.absolute()
        if to is not None:
            _check_target(target, found)
        missing, needed = _sizes(found, to)
        print_note(
            f"{found.form}, {len(found.files)} files; {size(missing)} to fetch into {target}"
        )
        free = shutil.disk_usage(_existing(target)).free
        if needed > free:
            raise no_room(needed, free, target)
        directory = _fetch(found, to)
    _check_whole(model, directory)
    if to is not None:
        (directory / COMPLETE).write_text(f"{model} {found.commit}\n", "utf-8")
    return directory


def cached(model: str, revision: str | None = None) -> Path | None:
    """The snapshot of a model in Hugging Face's cache, or None if it is not complete. The function
    does not use the network."""
    _require_library()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for form in (MISTRALS, HUGGING_FACES):
        try:
            snapshot = snapshot_download(
                model,
                revision=revision or DEFAULT_REVISION,
                local_files_only=True,
                allow_patterns=[form.numbers, form.index],
            )
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        directory = Path(snapshot)
        if not any(finding.level == "fail" for finding in check_model(directory)):
            return directory
    return None


def _find(model: str, revision: str) -> Found:
    from huggingface_hub import HfApi

    info = HfApi().model_info(model, revision=revision)
    if info.sha is None:
        raise PullError(f"the hub names no commit of {model}")
    names = {file.rfilename for file in info.siblings or ()}
    try:
        name, form = form_of_files(names)
        numbers, index = _read(model, info.sha, form, names)
        files = files_of_model(names, form, numbers, index)
    except NotServed as error:
        raise PullError(
            f"{model} has no model that pixtral-serve serves: {error} (docs/models.md lists them)"
        ) from None
    return Found(model, revision, info.sha, name, tuple(files))


def _read(model: str, commit: str, form: Form, names: set[str]) -> tuple[bytes, bytes | None]:
    """The contents of the form's `numbers` and `index`; None for an index that does not exist."""
    from huggingface_hub import hf_hub_download

    def read(name: str) -> bytes:
        return Path(hf_hub_download(model, name, revision=commit, local_dir=directory)).read_bytes()

    with tempfile.TemporaryDirectory(prefix="pixtral-pull-") as directory:
        return read(form.numbers), read(form.index) if form.index in names else None


def _check_target(target: Path, found: Found) -> None:
    """Raises PullError if the directory has files of another model, because a tier would load the
    files of both as one model."""
    try:
        name = (target / COMPLETE).read_text("utf-8").partition(" ")[0]
    except OSError:
        name = ""
    if name and name != found.model:
        raise PullError(f"{target} has {name}: choose another directory, or empty it")
    others = {
        path.name
        for form in (MISTRALS, HUGGING_FACES)
        for pattern in (form.numbers, form.index, form.weights)
        for path in target.glob(pattern)
    } - set(found.files)
    if others:
        raise PullError(
            f"{target} has {min(others)}, which is not of this model: choose another directory, or "
            "empty it"
        )


def _sizes(found: Found, to: Path | None) -> tuple[int, int]:
    """The bytes to fetch, and the bytes that they need on the disk.

    With `to`, the library copies files from its cache into the directory. Such files need space on
    the disk but are not fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    # The library also shows a bar for a dry run, which looks as if it fetched the files.
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        files = snapshot_download(
            found.model,
            revision=found.commit,
            local_dir=to,
            allow_patterns=list(found.files),
            dry_run=True,
        )
    finally:
        if not were_disabled:
            enable_progress_bars()
    fetched = [file for file in files if file.will_download]
    new = fetched if to is None else [file for file in files if not (to / file.filename).exists()]
    return sum(file.file_size or 0 for file in fetched), sum(file.file_size or 0 for file in new)


def _fetch(found: Found, to: Path | None) -> Path:
    from huggingface_hub import snapshot_download

    if to is not None:
        # The directory is incomplete until all files are fetched.
        (to / COMPLETE).unlink(missing_ok=True)
    directory = snapshot_download(
        found.model, revision=found.commit, local_dir=to, allow_patterns=list(found.files)
    )
    if to is None and not _COMMIT.fullmatch(found.revision):
        # The cache records the commit of the branch or tag, so that its name also works offline.
        ref = Path(directory).parents[1] / "refs" / found.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(found.commit, "utf-8")
    return Path(directory)


def _check_whole(model: str, directory: Path) -> None:
    for finding in check_model(directory):
        if finding.level == "fail":
            raise PullError(
                f"{model} is in {directory}, but cannot be served: {finding.what}; {finding.advice}"
            )


def _require_library() -> None:
    if find_spec("huggingface_hub") is None:
        raise MissingExtra(
            f"a model of the hub needs the package huggingface_hub: {install_command('cli')}"
        )
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", SECONDS_BETWEEN_LINES)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.is_dir())


def print_note(text: str) -> None:
    """Prints a line on standard error, because standard output is only for the directory."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()
