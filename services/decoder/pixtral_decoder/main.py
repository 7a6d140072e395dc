"""The start of `python -m pixtral_decoder`, and of each process of its engine.

When a process spawns others, Python's multiprocessing first imports the main module of the parent
into each child. A main module that is called `__main__` is the exception: no child imports it.
"""

import pixtral_core.server.quick_start  # noqa: F401 - before all large imports
from pixtral_decoder.vllm_hooks.exit_with_parent import end_with_parent

if __name__ == "__main__":
    from pixtral_core.server.process import run
    from pixtral_core.settings import load
    from pixtral_decoder.process import DecoderTier
    from pixtral_decoder.settings import DecoderSettings

    run(DecoderTier, load(DecoderSettings, prog="pixtral-serve decoder"))
else:
    end_with_parent()
