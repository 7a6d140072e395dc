"""Why the gateway answers some requests otherwise than stock vLLM."""

ARGUMENTS: dict[str, str] = {}
