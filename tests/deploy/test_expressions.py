import pytest

from tools.expressions import Expression


@pytest.mark.parametrize(
    ("text", "metrics"),
    [
        ("up == 0", {"up"}),
        (
            'sum by (job) (rate(vllm:tokens_total{model="a_metric"}[5m])) > 1e3',
            {"vllm:tokens_total"},
        ),
        ("a_total and on (instance) b or bool_c offset 5m", {"a_total", "b", "bool_c"}),
        (
            "histogram_quantile(0.5, sum by (le, x) (y_bucket)) / job:z:rate5m",
            {"y_bucket", "job:z:rate5m"},
        ),
    ],
)
def test_metrics_that_an_expression_reads(text: str, metrics: set[str]) -> None:
    assert Expression("any", text).metrics() == metrics
