"""`python -m services.encoder`"""

from services.encoder.settings import EncoderSettings
from services.encoder.tier import EncoderTier
from serving.server import run
from serving.settings import load

run(EncoderTier, load(EncoderSettings, prog="pixtral-serve encoder"))
