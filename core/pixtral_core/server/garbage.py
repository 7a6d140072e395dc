"""How often Python searches for garbage: as always, or rarely while a process starts.

Libraries make hundreds of thousands of objects when they are imported, and keep nearly all. Python
would look through them again and again, for a tenth of the time of an import and more.
"""

import gc

# Objects that are made, less those that are freed, between two searches of the youngest. A start
# makes garbage, too: a search is not put off for good.
_RARELY = 100_000
_USUAL = gc.get_threshold()


def search_rarely() -> None:
    gc.set_threshold(_RARELY, *_USUAL[1:])


def search_as_usual() -> None:
    gc.set_threshold(*_USUAL)
