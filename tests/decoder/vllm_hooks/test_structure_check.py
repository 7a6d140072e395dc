"""vLLM's own look at a structured output."""

import warnings

from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    from pixtral_decoder.vllm_hooks import structure_check


def test_still_there() -> None:
    assert_still_there(structure_check)


def test_still_needed_while_vllm_takes_a_grammar_that_slows_every_step() -> None:
    """Once this fails, vLLM refuses it itself; `grammar_check` refuses it by a trial."""
    slow = StructuredOutputsParams(grammar='root ::= (s s s)*\ns ::= "a" | s s | ""')
    structure_check.validate(SamplingParams(structured_outputs=slow))


def test_lark_is_told_from_ebnf_as_vllm_tells_it() -> None:
    assert structure_check.is_lark('start: "a"')
    assert not structure_check.is_lark('root ::= "a"')
