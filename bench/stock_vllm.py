"""Runs stock vLLM's OpenAI server on the same checkpoint, for comparison."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.module_path import ROOT, module_path

START_SECONDS = 300.0
# vLLM's own Pixtral imports torchvision, which has no CPU build. The CUDA build imports beside a
# CPU torch if the one module that registers its compiled operators is empty.
TORCHVISION = "torchvision==0.28.0"
EMPTIED = Path("torchvision/_meta_registrations.py")


def prepare() -> Path:
    """A folder with the packages that stock vLLM needs besides this environment; filled once."""
    directory = ROOT / ".cache" / "stock-vllm"
    if (directory / EMPTIED).exists():
        return directory
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--quiet", "--no-deps"]
    subprocess.run([*command, "--target", str(directory), TORCHVISION], check=True)
    (directory / EMPTIED).write_text("", encoding="utf-8")
    return directory


@contextlib.contextmanager
def stock_server(
    model_dir: Path, extra_packages: Path | None, log: Path, arguments: list[str]
) -> Iterator[str]:
    """Runs the server until the block ends; yields its base URL.

    `extra_packages` is the folder of `prepare`, if it is needed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "VLLM_PLUGINS": "", "HF_HUB_OFFLINE": "1"}
    environment["VLLM_NO_USAGE_STATS"] = "1"
    environment["VLLM_CPU_KVCACHE_SPACE"] = "1"
    environment |= module_path(*filter(None, [extra_packages]))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model_dir), "--served-model-name", "stock"]
    for option in ("--tokenizer-mode", "--config-format", "--load-format"):
        command += [option, "mistral"]
    command += ["--host", "127.0.0.1", "--port", str(port), *arguments]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(server, url, log)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"stock vLLM ended with {server.returncode}; see {log}")
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{url}/health", timeout=1),
        ):
            return
        time.sleep(0.25)
    raise RuntimeError(f"stock vLLM was not ready after {START_SECONDS:g} s; see {log}")
