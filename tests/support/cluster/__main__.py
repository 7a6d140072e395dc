"""Runs a stand-in: `python -m tests.support.cluster PROGRAM ARGUMENT...`."""

import os
import sys
from pathlib import Path

from tests.support.cluster.programs import run
from tests.support.cluster.state import Fault, State

state = State(Path(os.environ["STAND_IN_STATE"]))
try:
    run(state, sys.argv[1], sys.argv[2:])
except Fault as error:
    state.fault(str(error))
    sys.exit(str(error))
except Exception as error:
    state.fault(f"{type(error).__name__}: {error}")
    raise
