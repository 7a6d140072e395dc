"""Sets how often Python searches for garbage: as usual, or rarely while a process starts.

Libraries make hundreds of thousands of objects at import, and keep nearly all. Python would search
these objects again and again, which takes a tenth or more of the time of an import.
"""

import gc

# The allocated objects, less the freed ones, between two searches of the youngest generation. A
# start makes garbage, too, so the searches do not stop.
_RARELY = 100_000
_USUAL = gc.get_threshold()


def search_rarely() -> None:
    gc.set_threshold(_RARELY, *_USUAL[1:])


def search_as_usual() -> None:
    gc.set_threshold(*_USUAL)
