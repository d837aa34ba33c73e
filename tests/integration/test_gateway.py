"""The provider behind the real OpenFaaS gateway 0.25.4. INFLESS_GATEWAY names the binary, INFLESS_FAAS_CLI faas-cli's."""

import json
import os
from collections.abc import Iterator

import pytest
import requests
from faas_cli import FaasCli
from gateway_process import METRICS_URL, GatewayProcess
from network_namespace import own_network
from provider_process import ROOT, ProviderProcess, wait_until

CLI, GATEWAY = os.environ.get("INFLESS_FAAS_CLI", ""), os.environ.get("INFLESS_GATEWAY", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (CLI and GATEWAY), reason="INFLESS_FAAS_CLI and INFLESS_GATEWAY do not name a faas-cli and a gateway binary"
    ),
]
UPPER = "def predict(batch):\n    print('answering', batch)\n    return [str(item).upper() for item in batch]\n"
EVENTS = "def handle(event, context):\n    for word in event.body.decode().split():\n        yield {'word': word}\n"
SEEN = "def handle(event, context):\n    return dict(event.headers)\n"
SECRET = """import os
from pathlib import Path
def handle(event, context):
    return (Path(os.environ.get("secret_mount_path", "/var/openfaas/secrets")) / "key").read_text()
"""


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """The gateway listens on two fixed ports of all addresses: here they are nobody else's, and nobody reaches them."""
    try:
        network = own_network()
        network.__enter__()
    except OSError as error:
        pytest.skip(f"this user may not make a network namespace: {error}")
    yield
    network.__exit__(None, None, None)


@pytest.fixture(scope="module")
def provider(network, tmp_path_factory) -> Iterator[ProviderProcess]:
    """In that network."""
    made = ProviderProcess(tmp_path_factory.mktemp("provider"))
    yield made.start()
    made.destroy()


@pytest.fixture(scope="module")
def gateway(provider, tmp_path_factory) -> Iterator[GatewayProcess]:
    """In front of it."""
    made = GatewayProcess(GATEWAY, provider, tmp_path_factory.mktemp("gateway"))
    yield made.start()
    made.stop()


@pytest.fixture(scope="module")
def cli(gateway, provider, tmp_path_factory) -> FaasCli:
    """Logged in at the gateway."""
    cli = FaasCli(CLI, tmp_path_factory.mktemp("cli"), gateway.url)
    assert "credentials saved" in cli("login", "--password-stdin", text=provider.password)
    return cli


@pytest.fixture(scope="module")
def deploy(cli, provider):
    """Build a handler and deploy it through the gateway, with faas-cli's options."""

    def deploy(name: str, handler: str, *options: str) -> None:
        provider.build(name, handler)
        told = cli("deploy", "--image", f"test/{name}:latest", "--name", name, *options)
        assert "Deployed. 202 Accepted." in told
        assert f"Function {name} is ready" in cli("ready", name)

    return deploy


@pytest.fixture(scope="module")
def upper(deploy):
    """A function that every test may invoke."""
    deploy("upper", UPPER, "--label", "com.infless.latency.target=300ms")
    return "upper"


def alert(cli, provider, status, name):
    """What AlertManager posts."""
    body = {"status": status, "alerts": [{"status": status, "labels": {"alertname": "busy", "function_name": name}}]}
    return requests.post(f"{cli.url}/system/alert", json=body, auth=("admin", provider.password), timeout=10)


def test_the_how_to_says_how_this_is_set_up(gateway):
    """Each setting that these tests run with is in the guide."""
    guide = (ROOT / "docs" / "how-to" / "behind-a-gateway.md").read_text()
    assert [name for name in gateway.settings() if f"{name}=" not in guide] == []


class TestCommands:
    """faas-cli, as against any OpenFaaS."""

    def test_ready(self, cli):
        """The provider's health is the gateway's."""
        assert "OpenFaaS gateway is ready" in cli("ready")

    def test_a_wrong_password(self, cli, tmp_path):
        """The gateway asks the provider, which refuses."""
        stranger = FaasCli(CLI, tmp_path, cli.url)
        assert "password is incorrect" in stranger("login", "--password-stdin", text="wrong", ok=False)
        assert "Unauthorized access" in stranger("list", ok=False)

    def test_list_and_describe(self, cli, upper):
        """The gateway decodes the list and encodes it again: nothing that clients need is lost."""
        (listed,) = [one for one in json.loads(cli("list", "--json")) if one["name"] == upper]
        assert (listed["image"], listed["namespace"]) == ("test/upper:latest", "openfaas-fn")
        assert (listed["replicas"], listed["availableReplicas"]) == (1, 1)
        assert listed["labels"] == {"com.infless.latency.target": "300ms", "faas_function": upper}
        assert not listed["createdAt"].startswith("0001")
        told = cli("describe", upper)
        assert "Ready" in told
        assert "RAM:" in told

    def test_invoke(self, cli, upper):
        """With the namespace that faas-cli appends."""
        assert "HELLO" in cli("invoke", upper, text="hello")

    def test_invoke_what_is_not_there(self, cli):
        """404."""
        assert "404" in cli("invoke", "nobody", text="x", ok=False)

    def test_an_update(self, cli, deploy):
        """A second deployment is a rolling update; a label that is wrong comes back as the provider's sentence."""
        deploy("twice", UPPER)
        again = ("deploy", "--image", "test/twice:latest", "--name", "twice")
        assert "202 Accepted" in cli(*again, "--label", "com.infless.batch.max=4")
        assert "com.infless.batch.max: 'many' is not" in cli(*again, "--label", "com.infless.batch.max=many", ok=False)

    def test_remove(self, cli, deploy, provider):
        """Gone for everybody; a second time it is said."""
        deploy("gone", UPPER)
        assert "Removing" in cli("remove", "gone")
        assert provider.invoke("gone").status_code == 404
        assert "No existing function" in cli("remove", "gone", ok=False)

    def test_logs(self, cli, upper):
        """Past lines, and those to come while somebody follows."""
        cli("invoke", upper, text="before")
        wait_until(lambda: "answering ['before']" in cli("logs", upper, "--tail=false"), "the line is there")
        with cli.running("logs", upper, "--lines", "1") as lines:
            assert "answering" in next(lines)
            cli("invoke", upper, text="after")
            assert any("answering ['after']" in line for line in lines)

    def test_secrets(self, cli, deploy):
        """Created, listed, read by a function, replaced, removed."""
        assert "Created: 20" in cli("secret", "create", "key", "--from-literal", "one")
        assert "key" in cli("secret", "list")
        deploy("reader", SECRET, "--secret", "key")
        assert cli("invoke", "reader", text="x").endswith("one")
        assert "already exists" in cli("secret", "create", "key", "--from-literal", "two")
        assert "Updated: 20" in cli("secret", "update", "key", "--from-literal", "two")
        wait_until(lambda: cli("invoke", "reader", text="x").endswith("two"), "the function sees the new value")
        cli("remove", "reader")
        assert "Removed" in cli("secret", "remove", "key")
        assert "key" not in cli("secret", "list")

    def test_namespaces(self, cli, provider):
        """This gateway lists them and passes functions on; it has no route that makes one, so the provider is asked."""
        made = provider.send("POST", "/system/namespace/", {"name": "staging", "labels": {"openfaas": "1"}})
        assert made.status_code in (200, 201, 202), made.text
        assert "staging" in cli("namespace", "list")
        assert "404" in cli("namespace", "create", "other", ok=False)
        provider.build("upper", UPPER)
        cli("deploy", "--image", "test/upper:latest", "--name", "upper", "-n", "staging")
        assert "is ready" in cli("ready", "upper", "-n", "staging")
        assert "STAGED" in cli("invoke", "upper", "-n", "staging", text="staged")
        assert cli("list", "-q", "-n", "staging").split() == ["upper"]
        cli("remove", "upper", "-n", "staging")

    def test_version(self, cli, provider, gateway):
        """faas-cli gets the gateway's form, made of the provider's."""
        told = cli("version", "--warn-update=false")
        assert "infless" in told
        admin = ("admin", provider.password)
        whole = requests.get(f"{gateway.url}/system/info", auth=admin, timeout=5).json()
        own = provider.send("GET", "/system/info").json()["provider"]
        assert (whole["provider"]["provider"], whole["provider"]["orchestration"]) == ("infless", own["orchestration"])
        assert whole["provider"]["version"]["release"] == own["version"]["release"] in told
        assert set(whole["version"]) >= {"release", "sha"}


class TestWhatItAdds:
    """Counts, starts from zero, alerts, metrics, headers."""

    def test_invocation_counts(self, cli, deploy, provider):
        """It asks Prometheus for them; here the provider answers as Prometheus does, and counted direct calls too."""
        deploy("counted", UPPER)
        for _ in range(3):
            cli("invoke", "counted", text="x")
        provider.invoke("counted")
        (listed,) = [one for one in json.loads(cli("list", "--json")) if one["name"] == "counted"]
        assert listed["invocationCount"] == 4
        assert "Invocations:" in cli("describe", "counted")

    def test_scale_from_zero(self, cli, deploy, provider):
        """Nothing runs; the gateway asks for an instance, waits for it, and passes the request on."""
        deploy("sleeper", UPPER)
        provider.send("POST", "/system/scale-function/sleeper", {"replicas": 0})
        provider.ready("sleeper", 0)
        assert "AWAKE" in cli("invoke", "sleeper", text="awake")
        assert provider.status("sleeper")["availableReplicas"] == 1

    def test_alerts_scale(self, cli, deploy, provider):
        """Firing adds 40 % of the most that is allowed; resolved goes back to the least."""
        labels = {"com.openfaas.scale.min": "1", "com.openfaas.scale.max": "4", "com.openfaas.scale.factor": "40"}
        deploy("busy", UPPER, *[part for key, value in labels.items() for part in ("--label", f"{key}={value}")])
        assert alert(cli, provider, "firing", "busy.openfaas-fn").status_code == 200
        provider.ready("busy", 3)
        assert alert(cli, provider, "firing", "busy").status_code == 200
        provider.ready("busy", 4)
        assert alert(cli, provider, "resolved", "busy.openfaas-fn").status_code == 200
        provider.ready("busy", 1)

    def test_an_alert_needs_the_password(self, cli):
        """Like everything below /system."""
        assert requests.post(f"{cli.url}/system/alert", json={"alerts": []}, timeout=10).status_code == 401

    def test_events_pass(self, gateway, deploy):
        """Whole and in order. This gateway holds them until the end; newer ones pass each on as it comes."""
        deploy("events", EVENTS)
        answer = requests.post(
            f"{gateway.url}/function/events", data="one two", headers={"Accept": "text/event-stream"}, timeout=20
        )
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [line for line in answer.text.splitlines() if line] == ['data: {"word":"one"}', 'data: {"word":"two"}']

    def test_headers(self, gateway, deploy):
        """The function sees the gateway's call id and for whom it was forwarded; the caller gets the same id."""
        deploy("seen", SEEN)
        answer = requests.post(f"{gateway.url}/function/seen", data=b"x" * 100_000, timeout=20)
        seen = {name.lower(): value for name, value in answer.json().items()}
        assert seen["x-call-id"] == answer.headers["x-call-id"]
        assert int(seen["x-start-time"]) > 1e18
        assert seen["x-forwarded-host"] == "127.0.0.1:8080"

    def test_its_metrics(self, gateway, upper):
        """It polls the provider for replicas, and counts what it passed on."""
        requests.post(f"{gateway.url}/function/{upper}", data="x", timeout=20)
        metrics = wait_until(lambda: self._with_replicas(upper), "it polled the provider")
        assert f'gateway_function_invocation_total{{code="200",function_name="{upper}.openfaas-fn"}}' in metrics

    def _with_replicas(self, name):
        text = requests.get(METRICS_URL, timeout=5).text
        return text if f'gateway_service_count{{function_name="{name}.openfaas-fn"}} 1' in text else None
