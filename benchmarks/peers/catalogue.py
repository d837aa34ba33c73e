"""Every server of the benchmark: how it is started, and how it wants its requests."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import forms
from benchmarks.models import Example, Task

_SCRIPTS = Path(__file__).parent
OF_WATCHDOG = "INFLESS_OF_WATCHDOG"
"""Environment variable: path of an of-watchdog binary; without it that peer is left out."""


class MissingError(Exception):
    """A peer that is not there; the message says what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is started."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a server is started with."""

    task: Task
    example: Example
    port: int
    """And the four after it are free, too."""
    venvs: Path
    """Where peers are installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server of the benchmark."""

    name: str
    title: str
    command: Callable[[Start], Command]
    form: forms.Form = forms.RAW
    path: str = "/"
    keeps_alive: bool = True
    likely_rps: Mapping[str, float]
    """By model: where its search begins. Only time is lost when that is wrong."""
    package: str = ""
    """Distribution that its version is taken from."""


def _python(start: Start, name: str) -> str:
    path = start.venvs / name / "bin" / "python"
    if not path.is_file():
        raise MissingError(f"not installed; python -m benchmarks.peers.install {name}")
    return str(path)


def _peer(name: str, wait_s: float = 0.02, **more: str) -> Callable[[Start], Command]:
    def command(start: Start) -> Command:
        return Command(
            arguments=(_python(start, name), str(_SCRIPTS / f"{name}_server.py")),
            environment={**_variables(start, wait_s), **more},
        )

    return command


def _variables(start: Start, wait_s: float) -> dict[str, str]:
    return {"PEER_MODEL": str(start.example.path), "PEER_PORT": str(start.port), "PEER_WAIT_S": str(wait_s)}


def _pytriton(start: Start) -> Command:
    command = _peer("pytriton")(start)
    # Triton loads the first libpython that it finds, and that must be the one whose standard library is used.
    libraries = str(sysconfig.get_config_var("LIBDIR"))
    return Command(arguments=command.arguments, environment={**command.environment, "LD_LIBRARY_PATH": libraries})


def _ours(start: Start) -> Command:
    return Command(
        arguments=(sys.executable, "-m", "infless_watchdog"),
        environment={
            "function_dir": str(start.example.folder), "port": str(start.port), "metrics_port": str(start.port + 1),
            "batch_max": "32", "latency_target": f"{start.task.target_s}s", "cpu_cores": "1",
            "healthcheck_interval": "0s",
        },
    )  # fmt: skip


def _least(start: Start) -> Command:
    # 20 ms: shorter waits than the run of a full batch send batches too small to keep up with.
    return Command(arguments=(sys.executable, str(_SCRIPTS / "least.py")), environment=_variables(start, 0.02))


def _flask(start: Start) -> Command:
    folder = str(start.example.folder)
    return Command(
        arguments=(
            sys.executable, "-m", "benchmarks.one_to_one", "--function-dir", folder, "--port", str(start.port),
        ),
        environment={"cpu_cores": "1"},
    )  # fmt: skip


def _of_watchdog(start: Start) -> Command:
    binary = os.environ.get(OF_WATCHDOG, "")
    if not Path(binary).is_file():
        raise MissingError(f"the environment variable {OF_WATCHDOG} names no binary")
    behind = _flask(Start(task=start.task, example=start.example, port=start.port + 1, venvs=start.venvs))
    return Command(
        arguments=(binary,),
        environment={
            **behind.environment, "mode": "http", "upstream_url": f"http://127.0.0.1:{start.port + 1}",
            "fprocess": " ".join(behind.arguments), "port": str(start.port), "metrics_port": str(start.port + 2),
        },
    )  # fmt: skip


def _likely(dssm: float, lstm: float, tiny: float) -> dict[str, float]:
    return {"dssm": dssm, "lstm": lstm, "tiny": tiny}


SERVERS = {
    server.name: server
    for server in (
        Server(name="ours", title="ours", command=_ours, likely_rps=_likely(1200, 1000, 50_000), package="infless"),
        Server(name="least", title="least uvloop + httptools server that batches", command=_least,
               likely_rps=_likely(1200, 1000, 50_000), package="httptools"),
        Server(name="mosec", title="mosec", command=_peer("mosec"), path="/inference",
               likely_rps=_likely(1100, 1000, 26_000), package="mosec"),
        Server(name="pytriton", title="Triton through nvidia-pytriton", command=_pytriton, form=forms.OIP_BINARY,
               path="/v2/models/model/infer", likely_rps=_likely(800, 700, 2600), package="nvidia-pytriton"),
        Server(name="mlserver", title="MLServer", command=_peer("mlserver"), form=forms.OIP_JSON,
               path="/v2/models/model/infer", likely_rps=_likely(450, 200, 900), package="mlserver"),
        Server(name="litserve", title="LitServe", command=_peer("litserve"), path="/predict",
               likely_rps=_likely(390, 390, 600), package="litserve"),
        Server(name="bentoml", title="BentoML", command=_peer("bentoml", BENTOML_DO_NOT_TRACK="true"),
               form=forms.NAMED_JSON, path="/predict", likely_rps=_likely(220, 100, 400), package="bentoml"),
        Server(name="of-watchdog", title="of-watchdog + Flask", command=_of_watchdog,
               likely_rps=_likely(95, 300, 1400)),
        Server(name="flask", title="Flask on gunicorn (one-to-one)", command=_flask, keeps_alive=False,
               likely_rps=_likely(95, 330, 2300), package="flask"),
        Server(name="ray", title="Ray Serve", command=_peer("ray", RAY_USAGE_STATS_ENABLED="0"),
               likely_rps=_likely(90, 80, 90), package="ray"),
    )
}  # fmt: skip
