"""The start of `python -m pixtral_decoder`, and of each process of its engine.

Python's multiprocessing imports the main module of a process into those that it spawns, before
anything of theirs, unless that is called `__main__`.
"""

import pixtral_core.server.quick_start  # noqa: F401 - before all that is large
from pixtral_decoder.vllm_hooks.exit_with_parent import end_with_parent

if __name__ == "__main__":
    from pixtral_core.server.process import run
    from pixtral_core.settings import load
    from pixtral_decoder.process import DecoderTier
    from pixtral_decoder.settings import DecoderSettings

    run(DecoderTier, load(DecoderSettings, prog="pixtral-serve decoder"))
else:
    end_with_parent()
