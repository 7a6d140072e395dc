"""Selects the files of a repository that the tiers need to serve its model."""

import json
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from typing import Any

from pixtral_cli.checkpoint_report import HUGGING_FACES, MISTRALS, SENTENCEPIECE, Form

# Mistral's form comes first, because the tiers also prefer it (docs/models.md).
FORMS = {"Mistral's form": MISTRALS, "Hugging Face's form": HUGGING_FACES}
BESIDE = ("generation_config.json", "tekken.json", SENTENCEPIECE)
BESIDE_HUGGING_FACES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("preprocessor_config.json", "processor_config.json"),
)


class NotServed(ValueError):
    """A repository has no model that the tiers serve. The text says what is missing."""


def form_of_files(names: Collection[str]) -> tuple[str, Form]:
    """The form in which a repository with these files is fetched, with its name for people.

    Raises NotServed.
    """
    for name, form in FORMS.items():
        if form.numbers in names and _matching(names, form.weights):
            return name, form
    needed = ", nor ".join(f"{form.numbers} with {form.weights}" for form in FORMS.values())
    raise NotServed(f"it has neither {needed}")


def files_of_model(
    names: Collection[str], form: Form, numbers: bytes, index: bytes | None
) -> list[str]:
    """The names of the files that the tiers read, sorted.

    Args:
        names: all files of the repository.
        numbers: the content of the form's `params.json` or `config.json`.
        index: the content of the form's index, if there is one. It names the files of weights.

    Raises:
        NotServed: `numbers` do not describe a Pixtral, or a file of the index is missing.
    """
    if not form.is_pixtral(_table(form.numbers, numbers)):
        raise NotServed(f"its {form.numbers} describes no vision tower of a Pixtral")
    if index is None:
        weights = _matching(names, form.weights)
    else:
        weights = _indexed(form.index, index)
        if missing := [name for name in weights if name not in names]:
            raise NotServed(f"{missing[0]} is missing, which {form.index} names")
    patterns = BESIDE if form is MISTRALS else (*BESIDE, *BESIDE_HUGGING_FACES)
    beside = [name for pattern in patterns for name in _matching(names, pattern)]
    own = [form.numbers] if index is None else [form.numbers, form.index]
    return sorted({*own, *weights, *beside})


def _matching(names: Collection[str], pattern: str) -> list[str]:
    # A file in a folder belongs to another model, or is a copy.
    return [name for name in names if "/" not in name and fnmatch(name, pattern)]


def _table(name: str, content: bytes) -> Mapping[str, Any]:
    try:
        table = json.loads(content)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise NotServed(f"its {name} is not an object of JSON")
    return table


def _indexed(name: str, content: bytes) -> list[str]:
    places = _table(name, content).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise NotServed(f"its {name} has no weight_map")
    return sorted(set(places.values()))
