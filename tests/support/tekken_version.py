"""Changes a checkpoint's tokenizer to another version of Mistral's format."""

import json
from pathlib import Path
from typing import Any

from mistral_common.tokens.tokenizers.tekken import Tekkenizer

# As in the tokenizers of Magistral and Mistral-Small-4.
THINKING = ((34, "[THINK]"), (35, "[/THINK]"))
SETTINGS = ((36, "[MODEL_SETTINGS]"), (37, "[/MODEL_SETTINGS]"))
EFFORTS = ("none", "high")


def set_version(directory: Path, version: str, *, thinks: bool = False) -> None:
    """Sets the version. `thinks` adds a reasoning model's tokens, which version 15 always has."""
    path = directory / "tekken.json"
    tekken = json.loads(path.read_text())
    tekken["config"]["version"] = version
    if version not in ("v3", "v7"):
        tokens: list[dict[str, Any]] = [
            dict(token) for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS
        ]
        added = [(32, "[ARGS]"), (33, "[CALL_ID]")]
        if thinks or version == "v15":
            added += THINKING
        if version == "v15":
            added += SETTINGS
            tekken["model_settings_builder"] = {
                "reasoning_effort": {
                    "type": "enum",
                    "accepts_none": True,
                    "default": EFFORTS[0],
                    "values": list(EFFORTS),
                }
            }
        for rank, name in added:
            tokens.append({"rank": rank, "token_str": name, "is_control": True})
        known = {token["rank"] for token in tokens}
        tokens += [
            {"rank": rank, "token_str": f"<SPECIAL_{rank}>", "is_control": True}
            for rank in range(tekken["config"]["default_num_special_tokens"])
            if rank not in known
        ]
        tekken["special_tokens"] = sorted(tokens, key=lambda token: token["rank"])
    path.write_text(json.dumps(tekken))
