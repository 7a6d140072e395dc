"""Collects garbage rarely until the process is ready; a process imports this before the rest.

`pixtral_core.server.process` ends it.
"""

from pixtral_core.server import garbage

garbage.search_rarely()
