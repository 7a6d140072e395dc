"""The prompts that Mistral published with the model card's figures, word for word.

Source: https://github.com/mistralai/mistral-evals, `eval/tasks` at commits e3ba8c41 (ChartQA,
MathVista), 523b0ee0 (MMMU), 70eecd8f (DocVQA, VQAv2) and 94160a0c (MM-MT-Bench). A figure is
comparable with the card's only if the prompt is the same, its slips included.
"""

from typing import Final

_STEPS: Final = (
    "Analyze the image and question carefully, using step-by-step reasoning.\n"
    "First, describe any image provided in detail. Then, present your reasoning. "
    "And finally your final answer in this format:\n"
    "Final Answer: <answer>\n"
)
_REMEMBER: Final = "IMPORTANT: Remember, to end your answer with Final Answer: <answer>."

CHARTQA: Final = (
    f"{_STEPS}where <answer> follows the following instructions:\n"
    "- <answer> should should be a single phrase or number.\n"
    "- <answer> should not paraphrase or reformat the text in the image.\n"
    "- If <answer> is a ratio, it should be a decimal value like 0.25 instead of 1:4.\n"
    "- If the question is a Yes/No question, <answer> should be Yes/No.\n"
    "- If <answer> is a number, it should not contain any units.\n"
    "- If <answer> is a percentage, it should include a % sign.\n"
    "- If <answer> is an entity, it should include the full label from the graph.\n"
    f"{_REMEMBER}"
)
# MMMU and MathVista have the same.
CHOICE_OR_OPEN: Final = (
    f"{_STEPS}where <answer> is:\n"
    "- The single correct letter choice A, B, C, D, E, F, etc. when options are provided. "
    "Only include the letter.\n"
    "- Your direct answer if no options are given, as a single phrase or number.\n"
    "- If your answer is a number, only include the number without any unit.\n"
    "- If your answer is a word or phrase, do not paraphrase or reformat the text you see in "
    "the image.\n"
    "- You cannot answer that the question is unanswerable. You must either pick an option or "
    "provide a direct answer.\n"
    f"{_REMEMBER}"
)
DOCVQA: Final = "Answer the question using a single word or phrase."
VQAV2: Final = (
    "- Answer the question using a single word, number, or short phrase. "
    "Use as few words as possible.\n"
    "- If the answer is a number, report it as a number, i.e. 2, not Two, and only include the "
    "number without any unit.\n"
    "- If the question is Yes/No, answer with Yes/No, and nothing else (no likely, unknown, "
    "etc.).\n"
    "- You cannot answer that the question is unanswerable. You must answer."
)
JUDGE: Final = (
    "Please act as an impartial judge and evaluate the quality of the response provided by an AI "
    "assistant to the most recent question given the previous conversation as context. Your "
    "evaluation should consider correctness and helpfulness. You will be given a reference answer "
    "and the assistant's answer. Begin your evaluation by comparing the assistant's answer with "
    "the reference answer. Identify and correct any mistakes. Be as objective as possible. After "
    "providing your explanation, you must rate the response on a scale of 1 to 10 by strictly "
    'following this format: "[[rating]]", for example: "Rating: [[5]]".\n\n'
)
