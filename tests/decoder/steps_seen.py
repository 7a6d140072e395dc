"""The decoder's scheduler, which a test's engine is given so that it writes down its steps."""

import json
import os
from pathlib import Path
from typing import Any

SCHEDULER = f"{__name__}.scheduler"
# Names the file that the engine's process writes to.
STEPS_SEEN = "PIXTRAL_TEST_STEPS_SEEN"


def scheduler(**given: Any) -> Any:
    # It takes vLLM, which the test that names this imports in its own way.
    from pixtral_decoder.vllm_hooks import scheduler

    made = scheduler.scheduler(**given)
    schedule = made.schedule

    def seen(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        if output.num_scheduled_tokens:
            with Path(os.environ[STEPS_SEEN]).open("a") as lines:
                lines.write(json.dumps(output.num_scheduled_tokens) + "\n")
        return output

    made.schedule = seen
    return made
