"""`make demo`: two real models under a minute of varying load, planned by INFless and then one-to-one, side by side.

Everything is started here and ended here, also when interrupted. Exit code 0 when every answer was right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import uvloop
from benchmarks.servers import free_port

from examples import demo_inputs
from examples.demo_report import Watch, print_report, write_picture
from infless_core.units import parse_duration_s
from infless_provider.client import Client, find_credentials
from infless_provider.replay import Shot, Stream, Tick, replay
from infless_provider.stackfile import StackFunction, read_stack
from infless_scheduler.arrivals import poisson_arrivals_s, wave_rates

OUT = Path("demo-out")
ROOT = Path(__file__).resolve().parent.parent
CORES = 2
"""For INFless and for the one-to-one replicas alike."""
PEAK_SHARE = 0.5
"""Peak load as a share of what one core can do in the best batch: the rest is left for the load generator, the
provider and the operating system, which share the cores of a small machine."""
SAMPLES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One function's part in the demo."""

    function: StackFunction
    target_s: float
    bodies: list[bytes]
    check: Callable[[int, int, bytes], bool]
    arrivals_s: list[float]

    def stream(self, url: str, every: int = 1, offset: int = 0) -> Stream:
        """Its requests, or every n-th of them, to one address."""
        return Stream(
            function=self.function.name,
            url=url,
            arrivals_s=self.arrivals_s[offset::every],
            bodies=self.bodies,
            headers=((b"content-type", b"application/octet-stream"),),
            check=self.check,
        )


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="length of each replay (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and inputs (default 1)")
    options = parser.parse_args()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    os.chdir(ROOT)
    try:
        return run(options.seconds, options.seed)
    except KeyboardInterrupt:
        say("interrupted; everything that was started has been ended")
        return 130
    except (DemoError, subprocess.CalledProcessError) as error:
        say(f"the demo failed: {error}")
        return 1


class DemoError(Exception):
    """The demo cannot go on."""


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def run(seconds: int, seed: int) -> int:
    """All steps; the number of the exit code."""
    shutil.rmtree(OUT, ignore_errors=True)
    state = (OUT / "state").resolve()
    functions = read_stack(ROOT / "stack.yml", os.environ, ("voice-activity", "text-direction")).functions
    names = [function.name for function in functions]
    say("[1/5] building " + " and ".join(names))
    infless("build", "-f", "stack.yml", "-o", str(OUT / "build"), *names)
    say("[2/5] profiling: how long does a batch take, on how many cores?")
    table = infless(
        "profile", "-f", "stack.yml", "--bundles", str(OUT / "build"), "--state-dir", str(state),
        "--cpu-cores", str(CORES), "--json", *names,
    )  # fmt: skip
    loads = [_load(function, json.loads(table)[function.name], seconds, seed) for function in functions]
    say("[3/5] starting `infless up` and deploying with latency targets")
    with provider(state) as gateway:
        client = Client(gateway, find_credentials(state))
        for load in loads:
            client.deploy(load.function.deployment)
        _wait_ready(client, names)
        say(f"[4/5] {seconds} s of Poisson load through {gateway}/function/NAME")
        watch = Watch(client)
        planned = asyncio.run(_replay(loads, gateway, watch))
    say(f"[5/5] the same load, one-to-one: equal replicas without batching on the same {CORES} core(s)")
    with replicas(loads) as urls:
        plain = asyncio.run(_replay_plain(loads, urls))
    wrong = print_report(loads, planned, plain, watch, seconds)
    write_picture(OUT / "demo.png", loads, planned, plain, watch, seconds)
    say(f"picture: {OUT / 'demo.png'}")
    return 1 if wrong else 0


def infless(*arguments: str) -> str:
    """Run the `infless` command; its progress goes through, its result is returned."""
    command = [sys.executable, "-m", "infless_provider.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _load(function: StackFunction, points: Sequence[dict[str, Any]], seconds: int, seed: int) -> Load:
    """Inputs, right answers, and arrivals whose peak follows from the function's own profile."""
    labels = function.deployment["labels"]
    target_s = parse_duration_s(labels["com.infless.latency.target"])
    best_rps = max(p["batch"] / p["exec_s"] for p in points if p["cpu_cores"] == 1 and p["exec_s"] <= target_s / 2)
    bodies, check = _inputs(function.name, seed)
    rng = random.Random(f"{seed} {function.name}")
    arrivals_s = poisson_arrivals_s(wave_rates(PEAK_SHARE * best_rps, seconds), rng)
    return Load(function=function, target_s=target_s, bodies=bodies, check=check, arrivals_s=arrivals_s)


def _inputs(name: str, seed: int) -> tuple[list[bytes], Callable[[int, int, bytes], bool]]:
    if name == "voice-activity":
        clips = demo_inputs.voice_clips(SAMPLES, seed)
        right = demo_inputs.expected_voice(clips)
        return clips, lambda index, _status, body: demo_inputs.voice_is_right(right[index], body)
    images = demo_inputs.text_images(SAMPLES, seed)
    probabilities = demo_inputs.expected_text(images)
    return (
        [image.tobytes() for image in images],
        lambda index, _status, body: demo_inputs.text_is_right(probabilities[index], body),
    )


@contextmanager
def provider(state: Path) -> Iterator[str]:
    """`infless up` on a free port; ended, with its instances, on the way out."""
    port = free_port()
    log = (OUT / "provider.log").open("w")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "infless_provider.cli", "up", "--port", str(port), "--state-dir", str(state),
            "--bundles", str(OUT / "build"), "--cpu-cores", str(CORES),
        ],
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    gateway = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _answers(f"{gateway}/healthz"), 30, "the provider does not answer", process)
        yield gateway
    finally:
        with _uninterrupted():
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            subprocess.run(
                [sys.executable, "-m", "infless_provider.cli", "down", "--state-dir", str(state)],
                check=False, capture_output=True,
            )  # fmt: skip
            log.close()


@contextmanager
def replicas(loads: Sequence[Load]) -> Iterator[dict[str, list[str]]]:
    """Plain OpenFaaS-style replicas, as many for each function, each pinned to a core of its own."""
    cpus = sorted(os.sched_getaffinity(0))[-CORES:]
    each = max(1, len(cpus) // len(loads))
    started: list[subprocess.Popen[bytes]] = []
    urls: dict[str, list[str]] = {}
    log = (OUT / "replicas.log").open("w")
    try:
        for place in range(each * len(loads)):
            load, port = loads[place % len(loads)], free_port()
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "benchmarks.one_to_one",
                    "--function-dir", str(load.function.handler), "--port", str(port),
                ],
                env={**os.environ, **load.function.deployment.get("envVars", {}), "cpu_cores": "1"},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            started.append(process)
            os.sched_setaffinity(process.pid, {cpus[place % len(cpus)]})
            url = f"http://127.0.0.1:{port}/"
            urls.setdefault(load.function.name, []).append(url)
            _wait(lambda url=url: _answers(url), 60, "a plain replica does not answer", process)  # type: ignore[misc]
        yield urls
    finally:
        with _uninterrupted():
            for process in started:
                process.terminate()
            for process in started:
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            log.close()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave processes behind."""
    old = {name: signal.signal(name, signal.SIG_IGN) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)


async def _replay(loads: Sequence[Load], gateway: str, watch: Watch) -> list[Shot]:
    watching = asyncio.ensure_future(watch.run())
    try:
        streams = [load.stream(f"{gateway}/function/{load.function.name}") for load in loads]
        return await replay(streams, progress=_progress(loads))
    finally:
        watching.cancel()


async def _replay_plain(loads: Sequence[Load], urls: dict[str, list[str]]) -> list[Shot]:
    streams = [
        load.stream(url, every=len(urls[load.function.name]), offset=offset)
        for load in loads
        for offset, url in enumerate(urls[load.function.name])
    ]
    return await replay(streams, progress=_progress(loads))


def _progress(loads: Sequence[Load]) -> Callable[[Tick], None]:
    targets_s = {load.function.name: load.target_s for load in loads}
    end = "\r" if sys.stderr.isatty() else "\n"
    every = 1 if sys.stderr.isatty() else 10

    def tell(tick: Tick) -> None:
        if round(tick.at_s) % every:
            return
        met = sum(shot.ok and shot.latency_s <= targets_s[shot.function] for shot in tick.finished)
        share = f"{met / len(tick.finished):4.0%}" if tick.finished else "   -"
        line = f"  {tick.at_s:3.0f} s  {tick.sent:5d} requests/s  {share} within target  {tick.waiting:4d} waiting   "
        print(line, end=end, file=sys.stderr, flush=True)

    return tell


def _wait_ready(client: Client, names: Sequence[str]) -> None:
    for name in names:
        _wait(lambda name=name: client.describe(name)["availableReplicas"] > 0, 60, f"{name} is not ready")  # type: ignore[misc]


def _wait(ready: Callable[[], bool], timeout_s: float, sentence: str, process: Any = None) -> None:
    ends_s = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > ends_s or (process is not None and process.poll() is not None):
            raise DemoError(f"{sentence}; see the logs in {OUT}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        requests.get(url, timeout=1)
    except requests.RequestException:
        return False
    return True


if __name__ == "__main__":
    uvloop.install()
    raise SystemExit(main())
