"""A checkpoint's tokenizer as another version of Mistral's would be."""

import json
from pathlib import Path
from typing import Any

from mistral_common.tokens.tokenizers.tekken import Tekkenizer


def set_version(directory: Path, version: str) -> None:
    path = directory / "tekken.json"
    tekken = json.loads(path.read_text())
    tekken["config"]["version"] = version
    if version not in ("v3", "v7"):
        tokens: list[dict[str, Any]] = [
            dict(token) for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS
        ]
        for rank, name in ((32, "[ARGS]"), (33, "[CALL_ID]")):
            tokens.append({"rank": rank, "token_str": name, "is_control": True})
        known = {token["rank"] for token in tokens}
        tokens += [
            {"rank": rank, "token_str": f"<SPECIAL_{rank}>", "is_control": True}
            for rank in range(tekken["config"]["default_num_special_tokens"])
            if rank not in known
        ]
        tekken["special_tokens"] = sorted(tokens, key=lambda token: token["rank"])
    path.write_text(json.dumps(tekken))
