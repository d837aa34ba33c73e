"""The real OpenFaaS gateway in front of a provider. Its two ports are fixed, on all addresses."""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import requests
from provider_process import WAIT_S, ProviderProcess, environment, wait_until

URL = "http://127.0.0.1:8080"
METRICS_URL = "http://127.0.0.1:8082/metrics"


class GatewayProcess:
    """Start it, stop it. Start it in a network of its own."""

    def __init__(self, binary: str, provider: ProviderProcess, root: Path) -> None:
        self.url = URL
        self.log = root / "gateway.log"
        self._binary = binary
        self._provider = provider
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None

    def settings(self) -> dict[str, str]:
        """What docs/how-to/behind-a-gateway.md says, for this provider."""
        address = urlsplit(self._provider.url)
        return {
            "functions_provider_url": f"{self._provider.url}/",
            "function_namespace": "openfaas-fn",
            "scale_from_zero": "true",
            "basic_auth": "true",
            "secret_mount_path": str(self._root),
            "auth_proxy_url": f"{self._provider.url}/system/info",
            "faas_prometheus_host": str(address.hostname),
            "faas_prometheus_port": str(address.port),
        }

    def start(self) -> GatewayProcess:
        """Run it with the provider's own credentials, until it answers."""
        (self._root / "basic-auth-user").write_text("admin")
        (self._root / "basic-auth-password").write_text(self._provider.password)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary], env={**environment(), **self.settings()}, cwd=self._root, stdout=log, stderr=log
            )
        wait_until(self._answers, "the gateway answers")
        return self

    def stop(self) -> None:
        """End it at once: nothing that it holds needs an orderly end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=WAIT_S)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the gateway ended:\n{self.log.read_text()}"
        try:
            return requests.get(f"{URL}/healthz", timeout=1).ok
        except requests.RequestException:
            return False
