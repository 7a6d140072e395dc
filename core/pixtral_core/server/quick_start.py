"""Collects garbage rarely until the process is ready; a process imports this before the rest.

`pixtral_core.server.process` returns to the usual rate.
"""

from pixtral_core.server import garbage

garbage.search_rarely()
