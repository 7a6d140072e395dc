from pixtral_gateway.request import ToolCallDelta, whole_calls


def test_deltas_add_up_to_calls() -> None:
    pieces = [
        ToolCallDelta(0, "{", id="a", name="look"),
        ToolCallDelta(0, '"a": 1'),
        ToolCallDelta(0, "}"),
        ToolCallDelta(1, "{}", id="b", name="go"),
    ]
    assert whole_calls(pieces) == [
        ToolCallDelta(0, '{"a": 1}', id="a", name="look"),
        ToolCallDelta(1, "{}", id="b", name="go"),
    ]
