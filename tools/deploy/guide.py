"""Rules for docs/deploy.md: its commands work as they are typed."""

import re
from collections.abc import Iterator

from tools.deploy.manifests import ROOT

PAGE = ROOT / "docs" / "deploy.md"


def commands_can_be_typed(text: str) -> Iterator[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = "\n".join(blocks)
    if re.search(r"^kustomize ", commands, re.MULTILINE):
        yield "kubectl does not include kustomize, and the page does not ask for it"
    if "create namespace" in commands:
        yield "kubectl warns when it applies a namespace that `create` has made: apply it first"
    if re.search(r"=\.\.\.", commands.replace("PIXTRAL_API_KEY=pixtral-...", "")):
        yield "a command has dots in place of a value that readers cannot know"
    waits = False
    for line in commands.splitlines():
        if "kubectl apply -k" in line:
            waits = False
        waits = waits or "kubectl rollout status" in line
        if "port-forward" in line and not waits:
            yield "a port is forwarded before its pod runs"
    for line in re.findall(r"curl[^`\n]*/v1/\w+[^`\n]*", text):
        if "authorization" not in line.lower():
            yield f"a gateway with keys refuses: {line}"
