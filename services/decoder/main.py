"""What `python -m services.decoder` runs, and what begins each process of its engine.

Python's multiprocessing imports the main module of a process into those that it spawns, before
anything of theirs, unless that is called `__main__`.
"""

from services.decoder.orphan import end_with_parent

if __name__ == "__main__":
    from services.decoder.settings import DecoderSettings
    from services.decoder.tier import DecoderTier
    from serving.server import run
    from serving.settings import load

    run(DecoderTier, load(DecoderSettings, prog="pixtral-serve decoder"))
else:
    end_with_parent()
