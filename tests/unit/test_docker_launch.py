"""What a container is made of, what a host gives, and the sentences of both."""

import errno
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from docker_fake import FOREIGN, OURS, a_launch

from infless_core.errors import BackendError, InvalidInput
from infless_core.model import Gpu
from infless_provider.backends import docker_launch
from infless_provider.backends.base import CurveOrder
from infless_provider.backends.docker_api import Container, HostFacts
from infless_provider.backends.docker_host import connect, parse_gpus
from infless_provider.backends.docker_launch import Site, checked_reference, curve_config, instance_config, why_ended

SITE = Site(owner="me", user="1000:1000", gpu_driver="nvidia", mps_pipes="/tmp/nvidia-mps")


def variables(config):
    """The environment of a container."""
    return dict(line.split("=", 1) for line in config["Env"])


@pytest.mark.parametrize(
    "image",
    ["a", "f:1", "127.0.0.1:5000/team/f:latest", "ghcr.io/o/r/f", "h.io/f@sha256:" + "a" * 64, "f:1@sha256:" + "0" * 64,
     "a_b/c__d/e-f.g", "[::1]:5000/f", "LOCALHOST/f"],
)  # fmt: skip
def test_names_of_images(image):
    """As Docker takes them."""
    assert checked_reference(image) == image


@pytest.mark.parametrize(
    "image", ["", "A", "f:", "f:-1", "/f", "f/", "f@sha256:12", "f f", "f\n", "h.io/../f", "f" * 600]
)
def test_what_is_no_name_of_an_image(image):
    """The sentence shows it, and what one looks like."""
    with pytest.raises(InvalidInput, match="is not the name of an image; write for example 'resnet:1'"):
        checked_reference(image)


def test_nobody_is_root():
    """The provider's own user, unless that is root."""
    assert docker_launch.unprivileged(0, 0) == (1000, 1000)
    assert docker_launch.unprivileged(1234, 99) == (1234, 99)


def test_an_instance_is_confined():
    """What it may use, and that it may nothing else."""
    launch = a_launch(memory_bytes=5 << 20, secrets=Path("/s"), read_only_root=True)
    config = instance_config(launch, OURS, (1, 3), SITE)
    host = config["HostConfig"]
    assert config["Image"] == "sha256:1"
    assert config["User"] == "1000:1000"
    assert host["CpusetCpus"] == "1,3"
    assert host["Memory"] == host["MemorySwap"] == 5 << 20
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"]
    assert host["Init"]
    assert "size=" in host["Tmpfs"]["/tmp"]
    assert host["Mounts"] == [{"Type": "bind", "Source": "/s", "Target": "/var/openfaas/secrets", "ReadOnly": True}]
    assert host["PortBindings"] == {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}] for port in (8080, 8081)}
    assert "DeviceRequests" not in host
    assert "IpcMode" not in host
    assert "Cmd" not in config
    assert config["Labels"]["com.infless.cores"] == "1,3"


def test_the_settings_of_an_instance_win():
    """Over what the function says of the same."""
    told = variables(
        instance_config(a_launch(environment={"port": "1", "mine": "x", "batch_max": "0"}), OURS, (0,), SITE)
    )
    assert (told["port"], told["mine"], told["batch_max"]) == ("8080", "x", "8")
    assert "fprocess" not in told
    assert "gpu_percent" not in told


def test_a_share_of_a_gpu():
    """One device, and MPS for the share; the function may say on what it runs."""
    config = instance_config(a_launch(gpu_percent=30, gpu="1"), OURS, (0,), SITE)
    told, host = variables(config), config["HostConfig"]
    assert host["DeviceRequests"] == [{"Driver": "", "DeviceIDs": ["1"], "Capabilities": [["gpu"]]}]
    assert host["IpcMode"] == "host"
    assert host["Mounts"] == [
        {"Type": "bind", "Source": "/tmp/nvidia-mps", "Target": told["CUDA_MPS_PIPE_DIRECTORY"], "ReadOnly": False}
    ]
    assert told["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == told["gpu_percent"] == "30"
    assert told["model_device"] == "cuda"
    own = instance_config(a_launch(gpu_percent=30, environment={"model_device": "tensorrt"}), OURS, (0,), SITE)
    assert variables(own)["model_device"] == "tensorrt"


def test_a_whole_gpu_needs_no_mps_and_a_share_does():
    """Nobody would enforce the share."""
    bare = replace(SITE, mps_pipes="", gpu_driver="cdi")
    config = instance_config(a_launch(gpu_percent=100, gpu="0"), OURS, (0,), bare)
    assert config["HostConfig"]["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in variables(config)
    with pytest.raises(BackendError, match=r"50 % of a GPU needs NVIDIA's MPS daemon"):
        instance_config(a_launch(gpu_percent=50), OURS, (0,), bare)


def test_images_of_others():
    """They keep their command, are told the process as OpenFaaS tells it, and publish no metrics of ours."""
    config = instance_config(a_launch(process="python index.py"), FOREIGN, (0,), SITE)
    assert "Cmd" not in config
    assert variables(config)["fprocess"] == "python index.py"
    assert list(config["HostConfig"]["PortBindings"]) == ["8080/tcp"]
    assert instance_config(a_launch(process="a  b"), replace(FOREIGN, has_command=False), (0,), SITE)["Cmd"] == [
        "a",
        "b",
    ]


def test_a_timing_has_no_network():
    """And the same limits and secrets as an instance."""
    order = CurveOrder(
        artifact="sha256:1", environment={"x": "y"}, batches=[1, 4], cpu_cores=2, budget_s=1.5, timeout_s=60.0, memory_bytes=5 << 20,
        secrets=Path("/s"),
    )  # fmt: skip
    config = curve_config(order, OURS, (0, 1), SITE, "token")
    instance = instance_config(a_launch(memory_bytes=5 << 20, secrets=Path("/s")), OURS, (0, 1), SITE)
    for limit in ("Memory", "MemorySwap", "Mounts"):
        assert config["HostConfig"][limit] == instance["HostConfig"][limit]
    bare = curve_config(replace(order, memory_bytes=0, secrets=None), OURS, (0,), SITE, "token")["HostConfig"]
    assert (bare["Memory"], bare["Mounts"]) == (0, [])
    assert config["HostConfig"]["NetworkMode"] == "none"
    assert config["HostConfig"]["CapDrop"] == ["ALL"]
    assert config["Cmd"] == ["python", "-m", "infless_watchdog", "--curve", "1,4", "--budget-s", "1.5"]
    assert variables(config) == {
        "x": "y", "cpu_cores": "2", "PYTHONUNBUFFERED": "1", "secret_mount_path": "/var/openfaas/secrets",
    }  # fmt: skip
    assert "com.infless.instance" not in config["Labels"]


ENDED = Container(id="c", labels={}, running=False, ports={})


@pytest.mark.parametrize(
    ("container", "words", "why"),
    [
        (replace(ENDED, exit_code=0), "x", "its container ended by itself (exit code 0)"),
        (replace(ENDED, exit_code=1), "", "its container ended with exit code 1"),
        (replace(ENDED, exit_code=1), "no model", "its container ended with exit code 1: no model"),
        (replace(ENDED, exit_code=139), "", "its container ended with exit code 139, SIGSEGV"),
        (
            replace(ENDED, exit_code=137, out_of_memory=True, memory_bytes=64 << 20),
            "x",
            "it needed more memory than its limit, 64 MiB",
        ),
        (replace(ENDED, exit_code=137, out_of_memory=True), "x", "the machine ran out of memory"),
        (replace(ENDED, exit_code=127, error="no such file"), "", "its container could not be started: no such file"),
    ],
)
def test_why_a_container_ended(container, words, why):
    """One sentence."""
    assert why_ended(container, words) == why


FACTS = HostFacts(cpu_cores=4, memory_bytes=8 << 30)


def test_gpus_from_what_nvidia_smi_prints():
    """Mebibytes; a GPU whose memory it does not know is left out."""
    assert parse_gpus("0, 81920\n1, [N/A]\n\n2, 16\n") == (
        Gpu(id="0", memory_bytes=80 << 30),
        Gpu(id="2", memory_bytes=16 << 20),
    )


def test_a_missing_package_is_told(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "docker", None)
    monkeypatch.delitem(sys.modules, "infless_provider.backends.docker_engine", raising=False)
    with pytest.raises(BackendError, match=r"pip install 'infless\[docker\]'"):
        connect()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "no"), "permission denied; add this user to the group docker"),
        (FileNotFoundError(errno.ENOENT, "no"), "no Docker engine answers at unix:///x; start it"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), "no Docker engine answers at unix:///x; start it"),
        (TimeoutError("slow"), "does not answer: "),
    ],
)
def test_why_an_engine_does_not_answer(error, words):
    """The package hides the system's error inside others."""
    engine = pytest.importorskip("infless_provider.backends.docker_engine")
    assert words in engine._away("unix:///x", RuntimeError("Error while fetching", ValueError("aborted", error)))


def test_an_engine_elsewhere_is_refused(monkeypatch):
    """Instances answer on the loopback of its machine, not of ours."""
    engine = pytest.importorskip("infless_provider.backends.docker_engine")
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(
        BackendError, match="DOCKER_HOST is tcp://192.0.2.1:2375: instances are reached on this machine's"
    ):
        engine.DockerEngine.connect()


@pytest.mark.parametrize("environment", [{"": "s3cret"}, {"a=b": "s3cret"}, {"a": "s3\0cret"}])
def test_a_variable_that_cannot_be_passed_on_is_refused_without_its_value(environment):
    """The engine would say it with the value."""
    with pytest.raises(BackendError, match="environment variable .* cannot be given to a container") as caught:
        instance_config(a_launch(environment=environment), OURS, (0,), SITE)
    assert "cret" not in str(caught.value)
