"""Why the gateway answers some requests otherwise than stock vLLM."""

ARGUMENTS: dict[str, str] = {
    "ids": "A history from another server has ids of another form. The prompt has nine characters "
    "of each, as the tokenizer asks for.",
    "mistral": "Mistral's own API has it, and its clients send it.",
    "order": "`mistral_common` refuses the list for the tokenizer's version, or is stricter where "
    "vLLM goes around it.",
    "own answers": "Each answer of the gateway can be sent back, also an empty one, and one with "
    "text beside a call.",
    "status": "The field is needed, and the refusal names it.",
    "urls": "The scheme of a URL has no case.",
}
