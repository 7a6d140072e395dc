"""`python -m services.decoder`"""

from services.decoder.settings import DecoderSettings
from services.decoder.tier import DecoderTier
from serving.server import run
from serving.settings import load

# The engine's process imports this module too.
if __name__ == "__main__":
    run(DecoderTier, load(DecoderSettings, prog="pixtral-serve decoder"))
