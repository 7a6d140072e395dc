"""Turns the failures of huggingface_hub into lines that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PullError(Exception):
    """A model cannot be fetched. The text says why, and what to do."""


@contextmanager
def failures_of_hub(model: str, revision: str) -> Iterator[None]:
    """Turns the exceptions of huggingface_hub inside the context into PullError."""
    try:
        yield
    except PullError:
        raise
    except Exception as error:
        if text := _text(error, model, revision):
            raise PullError(text) from error
        raise


def _text(error: BaseException, model: str, revision: str) -> str | None:
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    match error:
        case errors.GatedRepoError():
            if _has_token():
                return (
                    f"{model} is gated, and the account of HF_TOKEN has no access: accept its "
                    f"terms at {hub}/{model}"
                )
            return (
                f"{model} is gated: accept its terms at {hub}/{model}, and set HF_TOKEN to a token "
                "of your account"
            )
        case errors.RepositoryNotFoundError():
            if _has_token():
                return f"{hub} has no repository {model}, or HF_TOKEN has no access to it"
            return f"{hub} has no repository {model}; a private one needs HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"{model} has no branch, tag or commit {revision}"
        case errors.HFValidationError():
            return f"{model} is not the id of a repository, such as mistralai/Pixtral-12B-2409"
        case errors.OfflineModeIsEnabled():
            return f"HF_HUB_OFFLINE is set, and {model} is not in {constants.HF_HUB_CACHE}"
        case errors.HfHubHTTPError():
            return _refusal(error, model, hub)
        case errors.LocalEntryNotFoundError():
            # The cause of this error is the failure that kept the library from the hub.
            if error.__cause__ is not None and (text := _text(error.__cause__, model, revision)):
                return text
            return f"{hub} did not answer as a hub does: {_first_line(error)}"
        case OSError(errno=errno.ENOSPC):
            return f"the disk became full while {model} was fetched: make room, and pull again"
    if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
        return (
            f"{hub} cannot be reached, or the download broke off ({_first_line(error)}): pull "
            "again to go on, or set HF_ENDPOINT to a mirror"
        )
    return None


def _refusal(error: Exception, model: str, hub: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"{hub} does not accept HF_TOKEN: make a new token, or unset it"
    if status == 429:
        return f"{hub} refuses more requests for now: wait, or set HF_TOKEN"
    return f"{hub} fails for {model} with status {status}: try again later"


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def no_room(needed: int, free: int, target: Path) -> PullError:
    return PullError(
        f"the model needs {size(needed)}, and {target} has room for {size(free)}: "
        "make room, or choose another disk by --to or HF_HOME"
    )


def size(count: int) -> str:
    """A number of bytes for people, in units of 1000."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
