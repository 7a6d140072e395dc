"""dspy: signatures with images, by its adapters."""

from typing import Any, Literal

import dspy
import litellm
import pytest

from tests.clients.asking import DATA_URL, MODEL, V1


@pytest.fixture
def lm() -> Any:
    return dspy.LM(
        f"openai/{MODEL}", api_base=V1, api_key="any", max_tokens=200, cache=False, num_retries=0
    )


class Look(dspy.Signature):
    """Says what is there."""

    image: dspy.Image = dspy.InputField()
    kind: Literal["square", "circle"] = dspy.OutputField()
    is_large: bool = dspy.OutputField()


def test_a_signature_by_json(lm: Any) -> None:
    """The model knows no form of text by itself: JSON fits its schema, once dspy knows that
    the server can do that.
    """
    able = {"litellm_provider": "openai", "mode": "chat", "supports_response_schema": True}
    litellm.register_model({f"openai/{MODEL}": able})
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        seen = dspy.Predict(Look)(image=dspy.Image(DATA_URL))
    assert seen.kind in ("square", "circle")
    assert isinstance(seen.is_large, bool)


def test_the_model_alone(lm: Any) -> None:
    (answer,) = lm("Hello!")
    assert answer
