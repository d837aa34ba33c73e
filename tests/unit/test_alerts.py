"""AlertManager's webhook: what it says, what follows for a function, and what is no webhook at all."""

import asyncio

import pytest

from infless_core.errors import InvalidInput, StateError
from infless_provider.alerts import Alert, parse_alerts, replicas_after
from infless_provider.state import State

WEBHOOK = {
    "receiver": "scale-up",
    "status": "firing",
    "version": "4",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "APIHighInvocationRate", "function_name": "f.openfaas-fn", "code": "200"},
            "annotations": {"summary": "High invocation total on f"},
            "startsAt": "2026-01-31T12:00:00Z",
        }
    ],
}
"""As AlertManager sends it."""


def webhook(*alerts):
    """One of these functions and states."""
    return {"alerts": [{"status": status, "labels": {"function_name": name}} for name, status in alerts]}


class TestParsing:
    """What is read; everything else is AlertManager's own."""

    def test_as_alertmanager_sends_it(self):
        """Name and state."""
        assert parse_alerts(WEBHOOK) == [Alert(function_name="f.openfaas-fn", firing=True)]

    def test_each_alert_by_itself(self):
        """The state of the group says nothing: some fire while others are resolved."""
        found = parse_alerts({"status": "resolved", **webhook(("a", "firing"), ("b", "resolved"), ("c", "strange"))})
        assert [(one.function_name, one.firing) for one in found] == [("a", True), ("b", False), ("c", False)]

    @pytest.mark.parametrize(
        "alert",
        [
            {},
            {"labels": None},
            {"labels": {}},
            {"labels": "x"},
            {"labels": {"function_name": ""}},
            {"labels": {"function_name": 3}},
        ],
    )
    def test_alerts_about_something_else_are_passed_over(self, alert):
        """Many rules share one AlertManager; the others in the group count."""
        data = webhook(("f", "firing"))
        assert parse_alerts({"alerts": [{"status": "firing", **alert}, *data["alerts"]]}) == parse_alerts(data)

    @pytest.mark.parametrize(
        "data", [{}, {"alerts": None}, {"alerts": {}}, {"alerts": "x"}, {"alerts": ["x"]}, {"alerts": [None]}]
    )
    def test_what_is_no_webhook(self, data):
        """A sentence that says what is expected."""
        with pytest.raises(InvalidInput, match="alerts must be a list of objects, as AlertManager's webhook sends it"):
            parse_alerts(data)

    def test_no_alerts_are_none(self):
        """An empty group is no fault."""
        assert parse_alerts({"alerts": []}) == []


@pytest.mark.parametrize(
    ("replicas", "most", "factor_percent", "after"),
    [
        (1, 20, 10, 3),
        (1, 5, 10, 2),  # half a replica is one
        (0, 20, 10, 2),
        (19, 20, 10, 20),
        (20, 20, 10, 20),
        (25, 20, 10, 20),
        (1, 20, 100, 20),
        (1, 1, 1, 1),
        (3, 1000, 1, 13),
    ],
)
def test_a_firing_alert_adds_a_share_of_the_most(replicas, most, factor_percent, after):
    """Rounded up, and never more than the most (OpenFaaS's rule)."""
    assert replicas_after(replicas=replicas, most=most, factor_percent=factor_percent) == after


class TestScaling:
    """What the controller makes of it."""

    def check(self, world, scenario):
        """Run it on a function with a largest number of ten and steps of three."""

        async def run():
            labels = {"com.openfaas.scale.max": "10", "com.openfaas.scale.factor": "25"}
            await scenario(await world.deploy(labels=labels))

        asyncio.run(run())

    def test_firing_again_and_again(self, world):
        """A step each time, up to the most; the planner is told, and a restart knows."""

        async def scenario(f):
            dirty = world.dirty
            for replicas in (4, 7, 10, 10):
                await world.controller.alert(webhook(("f.openfaas-fn", "firing")))
                assert f.stored.replicas == f.least(world.clock.now_s()) == replicas
            assert world.dirty == dirty + 4
            assert world.state.functions()[0].replicas == 10

        self.check(world, scenario)

    def test_what_runs_already_counts(self, world):
        """The planner may have started more than is asked for."""

        async def scenario(f):
            for _ in range(3):
                await world.running(f)
            await world.controller.alert(webhook(("f.openfaas-fn", "firing")))
            assert f.stored.replicas == 6

        self.check(world, scenario)

    def test_resolved(self, world):
        """The number is the planner's again, not a number that somebody once set."""

        async def scenario(f):
            await world.controller.alert(webhook(("f.openfaas-fn", "firing")))
            await world.controller.alert(webhook(("f.openfaas-fn", "resolved")))
            assert (f.stored.replicas, f.least(world.clock.now_s())) == (None, 1)

        self.check(world, scenario)

    def test_a_name_without_a_namespace(self, world):
        """Means the default one, as everywhere."""

        async def scenario(f):
            await world.controller.alert(webhook(("f", "firing")))
            assert f.stored.replicas == 4

        self.check(world, scenario)

    def test_an_unknown_function_keeps_nobody_away(self, world, caplog):
        """It was removed since: no fault of AlertManager's, which would else send the others again and again."""

        async def scenario(f):
            gone = [("gone.openfaas-fn", "firing"), ("f.elsewhere", "firing"), ("../f", "resolved")]
            await world.controller.alert(webhook(*gone, ("f.openfaas-fn", "firing")))
            assert f.stored.replicas == 4
            assert caplog.text.count("does not exist") == 3

        self.check(world, scenario)

    def test_a_full_disk_changes_nothing(self, world, monkeypatch):
        """AlertManager tries again."""

        async def scenario(f):
            monkeypatch.setattr(State, "put_function", lambda *_: (_ for _ in ()).throw(StateError("disk is full")))
            with pytest.raises(StateError):
                await world.controller.alert(webhook(("f.openfaas-fn", "firing")))
            assert f.stored.replicas is None

        self.check(world, scenario)

    def test_a_resolved_alert_wakes_nobody(self, world):
        """What sleeps was not what fired."""

        async def scenario(f):
            await world.update(code="1", labels={"com.openfaas.scale.min": "0"})
            world.clock.advance(901)
            await world.controller.alert(webhook(("f.openfaas-fn", "resolved")))
            assert f.least(world.clock.now_s()) == 0

        self.check(world, scenario)
