"""The one query that a gateway asks of Prometheus, answered in its form; everything else gets an empty vector."""

import pytest

from infless_provider.prometheus_query import answer

COUNTS = {"b.dev": 2, "a.openfaas-fn": 7, "b.openfaas-fn": 0, "c.notdev": 9}
QUERY = 'sum(gateway_function_invocation_total{{function_name=~".*.{}"}}) by (function_name)'


def counted(query, counts=COUNTS):
    """The counts in an answer, by function."""
    return {one["metric"]["function_name"]: one["value"][1] for one in answer(query, counts, 1.5)["data"]["result"]}


def test_the_form_is_prometheuss():
    """Its API has times as numbers and values as strings; the gateway reads nothing else."""
    assert answer(QUERY.format("dev"), COUNTS, 1.5) == {
        "status": "success",
        "data": {"resultType": "vector", "result": [{"metric": {"function_name": "b.dev"}, "value": [1.5, "2"]}]},
    }


@pytest.mark.parametrize(
    ("namespace", "functions"),
    [
        ("openfaas-fn", {"a.openfaas-fn": "7", "b.openfaas-fn": "0"}),
        ("dev", {"b.dev": "2"}),
        ("none", {}),
        ("ev", {}),
        ("", {"a.openfaas-fn": "7", "b.openfaas-fn": "0", "b.dev": "2", "c.notdev": "9"}),
    ],
)
def test_functions_of_a_namespace(namespace, functions):
    """Whole names only: `dev` is not `notdev`; a gateway without a namespace asks for all."""
    assert counted(QUERY.format(namespace)) == functions


@pytest.mark.parametrize(
    "query",
    [
        ' sum( gateway_function_invocation_total { function_name =~ ".*.dev" } ) by ( function_name ) ',
        'sum(gateway_function_invocation_total{function_name=~".*.dev"})by(function_name)',
    ],
)
def test_white_space_does_not_matter(query):
    """As in PromQL."""
    assert counted(query) == {"b.dev": "2"}


@pytest.mark.parametrize(
    "query",
    [
        "", "up", "sum(", 'gateway_function_invocation_total{function_name=~".*.dev"}',
        'sum(gateway_function_invocation_total{function_name=~".*.dev"}) by (code)',
        'sum(gateway_function_invocation_total{function_name=~".*.dev"}) by (function_name) > 1',
        'sum(rate(gateway_function_invocation_total{function_name=~".*.dev"}[10s])) by (function_name)',
    ],
)  # fmt: skip
def test_we_are_no_prometheus(query):
    """An empty vector, so that whoever asks goes on; a wrong figure would be worse."""
    assert answer(query, COUNTS, 1.5) == {"status": "success", "data": {"resultType": "vector", "result": []}}


def test_a_namespace_is_no_pattern():
    """What stands there is compared, not executed."""
    assert counted(QUERY.format("(dev|openfaas-fn)")) == {}
