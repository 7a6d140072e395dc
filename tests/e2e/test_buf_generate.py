"""`buf generate` makes a client of the public API from buf.gen.yaml. It needs npm."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.npm
ROOT = Path(__file__).parents[2]
BIN = ROOT / "node_modules" / ".bin"
ES = "buf.build/bufbuild/es:v"


def test_typescript_has_the_public_api_alone(tmp_path: Path) -> None:
    template = yaml.safe_load((ROOT / "buf.gen.yaml").read_text("utf-8"))
    (plugin,) = (each for each in template["plugins"] if each["remote"].startswith(ES))
    # The same plugin as npm installs it: tests do not ask for a network.
    package = json.loads((ROOT / "package.json").read_text("utf-8"))
    version = plugin.pop("remote").removeprefix(ES)
    assert package["devDependencies"]["@bufbuild/protoc-gen-es"] == version
    template["plugins"] = [plugin | {"local": str(BIN / "protoc-gen-es")}]
    generated = subprocess.run(
        [str(BIN / "buf"), "generate", "--template", json.dumps(template), "-o", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert generated.returncode == 0, generated.stderr
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.relative_to(tmp_path) == Path("gen/ts/pixtral/v1/chat_pb.ts")
    text = file.read_text("utf-8")
    for name in ("const ChatService", "type Chat =", "enum ErrorReason"):
        assert f"export {name}" in text or f"export declare {name}" in text
