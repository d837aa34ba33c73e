"""The real faas-cli as a child process, with a home and a configuration of its own."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provider_process import environment


class FaasCli:
    """Called with arguments it runs to its end, and gives everything that it printed.

    It always names the gateway by `OPENFAAS_URL`: what `-g` says loses where it is faas-cli's own default.
    """

    def __init__(self, binary: str, folder: Path, url: str, home: Path | None = None) -> None:
        self.folder = folder
        """Where it runs: a `stack.yaml` in there is used without being asked for."""
        self.url = url
        self._binary = binary
        self._home = home or folder

    def at(self, folder: Path) -> FaasCli:
        """The same login in another folder."""
        folder.mkdir(exist_ok=True)
        return FaasCli(self._binary, folder, self.url, self._home)

    def environment(self, path: str | None = None) -> dict[str, str]:
        """Of the child process; `path` stands in for PATH."""
        inherited = environment()
        return {
            **inherited,
            "PATH": path or inherited["PATH"],
            "HOME": str(self._home),
            "OPENFAAS_CONFIG": str(self._home / "config"),
            "OPENFAAS_URL": self.url,
        }

    def __call__(
        self, *arguments: str, text: str = "", ok: bool = True, path: str | None = None, timeout_s: float = 60
    ) -> str:
        """What it printed, standard output first; fails unless it succeeds, or does not, as `ok` says."""
        done = subprocess.run(
            [self._binary, *arguments],
            cwd=self.folder,
            env=self.environment(path),
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        told = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, f"exit {done.returncode} of {arguments}:\n{told}"
        return told

    @contextmanager
    def running(self, *arguments: str, within_s: float = 20) -> Iterator[Iterator[str]]:
        """The lines of a command that does not end by itself; they stop when it is killed, after `within_s` at last."""
        command = [self._binary, *arguments]
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environment(), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            guard = threading.Timer(within_s, process.kill)
            guard.start()
            try:
                yield iter(process.stdout.readline, "")
            finally:
                guard.cancel()
                process.kill()
