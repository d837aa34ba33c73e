"""The threat note against a real provider: secrets and tokens, and where they must not be found."""

from __future__ import annotations

import base64
import json
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import provider_books as books
import psutil
import pytest
import requests
import yaml
from provider_process import ROOT, ProviderProcess, infless, wait_until

pytestmark = pytest.mark.integration

GATED = '''
import os, pathlib, time
SECRET = pathlib.Path(os.environ.get("secret_mount_path", "none"), "canary")
def handle(event, context):
    """Says how long its secret is and what it was told; with "wait" it runs until the gate is open."""
    while event.body == b"wait" and not os.path.exists(os.environ["gate"]):
        time.sleep(0.002)
    told = {name.lower(): value for name, value in dict(event.headers).items()}
    length = len(SECRET.read_bytes()) if SECRET.exists() else None
    print("called with a secret of", length, flush=True)
    return {"statusCode": 200, "body": {"length": length, "headers": told}}
'''


def canary() -> str:
    """A value that is nowhere by chance."""
    return f"canary-{uuid.uuid4().hex}"


def forms(value: str) -> list[bytes]:
    """The value as it may appear: plain, in base64 at each alignment, in hexadecimal, and escaped for a URL."""
    plain = value.encode()
    coded = [base64.b64encode(b"x" * shift + plain)[4 * (shift > 0) : -4] for shift in range(3)]
    return [plain, plain.hex().encode(), quote(value, safe="").encode(), *coded]


def holds(data: bytes, value: str) -> bool:
    """Whether the value is in there, in one of its forms."""
    return any(form in data for form in forms(value))


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    """One whose state folder was there before, open to others to look into, and whose environment holds a secret."""
    made = ProviderProcess(tmp_path_factory.mktemp("secrets"))
    made.state.mkdir()
    made.state.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", canary())
        made.start("--cpu-cores", "1")
    yield made
    made.destroy()


@pytest.fixture
def values(provider: ProviderProcess) -> Iterator[dict[str, str]]:
    """A secret and a token in use: mounted, told, refused, called with, waiting in the queue; then they are gone."""
    made = {"canary": canary(), "token": canary()}
    for name, value in made.items():
        assert provider.send("POST", "/system/secrets", {"name": name, "value": value}).status_code == 201
    gate = provider.root / "gate"
    provider.build("gated", GATED)
    labels = {"com.infless.auth.secret": "token"}
    fields = {"secrets": ["canary"], "labels": labels, "envVars": {"gate": str(gate)}}
    assert provider.put("POST", "gated", **fields).status_code == 202
    provider.ready("gated")
    yield made
    gate.touch()
    assert provider.send("DELETE", "/system/functions", {"functionName": "gated"}).status_code == 202
    for name in made:
        provider.send("DELETE", "/system/secrets", {"name": name})
    gate.unlink()


def bearer(token: str) -> dict[str, str]:
    """A header."""
    return {"Authorization": f"Bearer {token}"}


def queue(provider: ProviderProcess, token: str, **headers: str) -> requests.Response:
    """A call that waits at the gate."""
    url = f"{provider.url}/async-function/gated"
    return requests.post(url, data=b"wait", headers={**bearer(token), **headers}, timeout=20)


class TestWhereTheyAreNot:
    """A value is in its files and in the function, and nowhere else."""

    def test_in_no_answer(self, provider, values):
        """Of any GET, of the function's own document, of what is told when something is wrong with a secret."""
        assert provider.invoke("gated", b"", headers=bearer(values["token"])).json()["length"] == len(values["canary"])
        document = yaml.safe_load((ROOT / "docs/reference/openapi.yaml").read_text())
        paths = [path for path, verbs in document["paths"].items() if "get" in verbs]
        paths = [path.replace("{name}", "gated").replace("{path}", "openapi.json") for path in paths]
        answers = [provider.send("GET", f"{path}?name=gated&usage=1&follow=0") for path in paths]
        answers += [provider.invoke("gated/openapi.json", verb="GET", headers=bearer(values["token"]))]
        answers += [infless("status", "--state-dir", str(provider.state), "--json")]
        assert any("called with a secret" in answer.text for answer in answers[:-1])
        for answer in answers:
            told = f"{answer.headers}{answer.text}" if isinstance(answer, requests.Response) else answer.stdout
            for value in values.values():
                assert not holds(told.encode(), value)

    def test_in_no_error(self, provider, values):
        """What is wrong is said without the value: with base64, size, name, namespace, JSON, or that it is there."""
        value = values["canary"]
        for verb, body, status in (
            ("POST", {"name": "canary", "value": value}, 409),
            ("POST", {"name": "other", "rawValue": f"!{value}"}, 400),
            ("POST", {"name": "other", "value": value + "x" * (1 << 20)}, 400),
            ("POST", {"name": "Not A Name", "value": value}, 400),
            ("POST", {"name": "other", "namespace": "nowhere", "value": value}, 400),
            ("POST", {"name": "other", "value": [value]}, 400),
            ("POST", {"name": "other", "rawValue": {"x": value}}, 400),
            ("PUT", {"name": "other", "value": value}, 404),
            ("POST", json.dumps({"name": "other", "value": value})[:-1].encode(), 400),
            ("POST", json.dumps({"name": "other", "value": value}).encode() + b"\xff", 400),
            ("POST", json.dumps([value]).encode(), 400),
            ("POST", {"name": "other", "value": value + "x" * (5 << 20)}, 413),
        ):
            answer = provider.send(verb, "/system/secrets", body)
            assert answer.status_code == status
            assert not holds(f"{answer.headers}{answer.text}".encode(), value)
        refused = provider.invoke("gated", headers=bearer(f"{values['token']}x"))
        assert (refused.status_code, holds(refused.content, values["token"])) == (401, False)
        self.test_in_no_file_but_their_own(provider, values)

    def test_in_no_file_but_their_own(self, provider, values):
        """Databases, logs of provider and instances, bundles, temporary folders; while a call waits in the queue."""
        assert queue(provider, values["token"]).status_code == 202
        wait_until(lambda: b"gated" in (provider.state / "queue.sqlite-wal").read_bytes(), "the call is on the disk")
        looked_at = set()
        for path, data in books.contents(provider.root).items():
            if provider.state / "secrets" not in path.parents:
                looked_at.add(path.name)
                for value in values.values():
                    assert not holds(data, value), path
        assert {"up.log", "state.sqlite", "queue.sqlite"} <= looked_at
        found = [path for path in (provider.state / "secrets").rglob("*") if path.is_file()]
        assert {value for path in found for value in values.values() if holds(path.read_bytes(), value)} == set(
            values.values()
        )

    def test_in_no_process_list(self, provider, values):
        """No command line and no environment, of any process; while calls run."""
        assert queue(provider, values["token"]).status_code == 202
        wait_until(
            lambda: provider.send("GET", "/system/overview").json()["functions"][0]["in_flight"], "the call runs"
        )
        listed = 0
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                data = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                listed += str(provider.root).encode() in data
                for value in (*values.values(), provider.password):
                    assert not holds(data, value), data
        assert listed >= 2

    def test_what_the_provider_was_started_with_is_not_the_functions(self, provider, values):
        """Of the environment only what programs need to run: not a cloud's credentials, say."""
        assert provider.process is not None
        [pid] = provider.pids("gated")
        told, given = psutil.Process(provider.process.pid).environ(), psutil.Process(pid).environ()
        assert given["OPENFAAS_NAME"] == "gated"
        assert Path(given["HOME"]) == provider.state / "tmp" / provider.instances("gated")[0]["id"]
        assert "AWS_SECRET_ACCESS_KEY" in told
        kept = {name for name in told if given.get(name) == told[name]}
        assert kept <= {
            "PATH",
            "LANG",
            "LD_LIBRARY_PATH",
            "XDG_CACHE_HOME",
            "PYTHONUSERBASE",
            "PYTHONUNBUFFERED",
            "PWD",
        }
        assert not holds(json.dumps(given).encode(), told["AWS_SECRET_ACCESS_KEY"])
        assert not [name for name, value in given.items() for one in values.values() if holds(value.encode(), one)]


def test_the_password_is_in_no_log(provider: ProviderProcess) -> None:
    """It is said where it is, not what; a wrong one is not repeated either."""
    wrong = canary()
    assert provider.send("GET", "/system/functions", auth=("admin", wrong)).status_code == 401
    assert "basic-auth-password" in provider.log.read_text()
    for value in (wrong, provider.password):
        assert not holds(provider.log.read_bytes(), value)


def test_files_are_their_owners_alone(provider: ProviderProcess, values: dict[str, str]) -> None:
    """Also in a state folder that others may look into; secrets are 0600 in folders of 0700."""
    assert values
    for path in books.contents(provider.state):
        with suppress(FileNotFoundError):  # a database's journal comes and goes
            mode = stat.S_IMODE(path.stat().st_mode)
            # What is in `bundles` cannot be reached; gunicorn's own file says a number that everybody can see.
            assert mode & 0o077 == 0 or "bundles" in path.parts or path.name == "provider.pid", (path, oct(mode))
            if provider.state / "secrets" in path.parents:
                assert mode == (0o700 if path.is_dir() else 0o600)
    assert stat.S_IMODE((provider.state / "bundles").stat().st_mode) == 0o700
    assert stat.S_IMODE((provider.state / "basic-auth-password").stat().st_mode) == 0o600


class TestTokens:
    """`com.infless.auth.secret`: who may call a function."""

    def asked(self, provider: ProviderProcess, token: str | None, **headers: str) -> tuple[int, int]:
        """Statuses of a call at once and of one for the queue."""
        given = {**({} if token is None else bearer(token)), **headers}
        url = f"{provider.url}/async-function/gated"
        queued = requests.post(url, data=b"", headers=given, timeout=20).status_code
        return provider.invoke("gated", b"", headers=given).status_code, queued

    def test_only_the_right_one_opens(self, provider, values):
        """Not none, an empty one, another secret's, a part of it, nor the operator's password."""
        right = values["token"]
        for wrong in (None, "", "x", values["canary"], right[:-1], f"{right}x", right.upper(), provider.password):
            assert self.asked(provider, wrong) == (401, 401)
        password = base64.b64encode(f"admin:{provider.password}".encode()).decode()
        assert self.asked(provider, None, Authorization=f"Basic {password}") == (401, 401)
        for elsewhere in ({"X-Token": right}, {"Cookie": f"token={right}"}):
            assert self.asked(provider, None, **elsewhere) == (401, 401)
        assert provider.invoke(f"gated?token={right}", b"").status_code == 401
        assert self.asked(provider, right) == (200, 202)

    def test_every_way_to_the_function_is_closed(self, provider, values):
        """By name and namespace, with a path, with every method; and a queued call cannot be cancelled by strangers."""
        call_id = queue(provider, values["token"]).headers["X-Call-Id"]
        for form in ("gated", "gated/", "gated.openfaas-fn", "gated/_/health", "gated/openapi.json", "gated/a/b?c=d"):
            for verb in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
                assert provider.invoke(form, b"", verb).status_code == 401
        url = f"{provider.url}/async-function/gated/{call_id}"
        assert requests.delete(url, timeout=20).status_code == 401
        assert requests.delete(url, headers=bearer(values["token"]), timeout=20).status_code == 202

    def test_the_function_does_not_see_it(self, provider, values):
        """Neither at once nor through the queue: it is for the provider."""
        told = provider.invoke("gated", b"", headers={**bearer(values["token"]), "Connection": "authorization"}).json()
        assert "x-call-id" in told["headers"]
        assert "authorization" not in told["headers"]
        assert not holds(json.dumps(told).encode(), values["token"])

    def test_a_new_value_closes_the_old_one_at_once(self, provider, values):
        """No restart, no deployment; lines of a secret are tokens, so that both can hold for a while."""
        old, new = values["token"], canary()
        for lines, opened, closed in (([old, new], [old, new], []), ([new], [new], [old])):
            body = {"name": "token", "value": "\n".join(lines)}
            assert provider.send("PUT", "/system/secrets", body).status_code == 200
            assert [self.asked(provider, token) for token in opened] == [(200, 202)] * len(opened)
            assert [self.asked(provider, token) for token in closed] == [(401, 401)] * len(closed)
            assert self.asked(provider, "\n".join(lines).replace("\n", " ") + " ") == (
                (200, 202) if len(lines) == 1 else (401, 401)
            )

    def test_a_secret_that_is_gone_closes_the_function(self, provider, values):
        """To everybody, until there is one again."""
        assert provider.send("DELETE", "/system/secrets", {"name": "token"}).status_code == 202
        for token in (values["token"], "", None, "None"):
            assert self.asked(provider, token) == (401, 401)
        again = canary()
        assert provider.send("POST", "/system/secrets", {"name": "token", "value": again}).status_code == 201
        assert self.asked(provider, again) == (200, 202)
        assert self.asked(provider, values["token"]) == (401, 401)

    @pytest.mark.parametrize("value", [" ", "\n\n", "\t"])
    def test_a_secret_without_a_token_opens_nothing(self, provider, values, value):
        """Neither for a new function, which is refused, nor for one that is there."""
        assert provider.send("POST", "/system/secrets", {"name": "blank", "value": value}).status_code == 201
        provider.build("blank")
        refused = provider.put("POST", "blank", labels={"com.infless.auth.secret": "blank"})
        assert (refused.status_code, "holds no token" in refused.text) == (400, True)
        assert provider.send("PUT", "/system/secrets", {"name": "token", "value": value}).status_code == 200
        assert [self.asked(provider, token) for token in ("", None, values["token"])] == [(401, 401)] * 3
        assert provider.send("DELETE", "/system/secrets", {"name": "blank"}).status_code == 202
