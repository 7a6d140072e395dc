"""The settings that a machine without GPUs replaces."""

from tools.deploy.images import compose
from tools.images_check.containers import services_of
from tools.images_check.stacks import on_this_machine

VARIABLES = {"MODEL_DIR": "/weights", "REDIS_PASSWORD": "word"}


def test_a_container_with_a_gpu_gets_a_cpus_settings_and_the_check_says_so() -> None:
    services = services_of(compose(), VARIABLES)
    stack = on_this_machine("compose", services)
    before = {pod.name: pod.main for pod in services}
    after = {pod.name: pod.main for pod in stack.pods}

    assert after["gateway"] == before["gateway"]
    assert after["redis"] == before["redis"]
    assert after["encoder"].environment["PIXTRAL_DEVICE"] == "cpu"
    assert "PIXTRAL_GPU_MEMORY_FRACTION" not in after["decoder"].environment
    said = "\n".join(stack.replaced)
    assert "PIXTRAL_DEVICE=cpu" in said
    assert "no PIXTRAL_GPU_MEMORY_FRACTION" in said
