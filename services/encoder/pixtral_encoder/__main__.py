"""`python -m pixtral_encoder`: runs an encoder until SIGTERM."""

import pixtral_core.server.quick_start  # noqa: F401 - before large imports
from pixtral_core.server.process import run
from pixtral_core.settings import load
from pixtral_encoder.process import EncoderTier
from pixtral_encoder.settings import EncoderSettings

run(EncoderTier, load(EncoderSettings, prog="pixtral-serve encoder"))
