"""Where cgroups may be made, from what the kernel says; and what is written into one. The tree is a plain folder."""

import os
import signal

import pytest

from infless_provider.backends import cgroups, procfs
from infless_provider.backends.cgroups import Place, candidates

V1 = "35 31 0:32 {root} {mount} rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V2 = "30 23 0:26 {root} {mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = "22 1 8:1 / / rw - ext4 /dev/root rw\n33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"


def found(own, mounts, delegated=()):
    """Places as `(version, path)`."""
    return [(place.version, place.path) for place in candidates(own, OTHERS + mounts, set(delegated).__contains__)]


def v2(tmp_path, *folders, passing=()):
    """A v2 tree in which some groups pass the memory controller on."""
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        told = "cpu memory pids\n" if folder in passing else "cpu\n"
        (tmp_path / folder / "cgroup.subtree_control").write_text(told)
    return V2.format(root="/", mount=tmp_path)


# version 1 -----------------------------------------------------------------------------------------------------------


def test_version_1_makes_them_below_us(tmp_path):
    """Whatever else there is."""
    own = "9:cpu,cpuacct:/other\n4:memory:/system.slice/a:b\n0::/\n"
    assert found(own, V1.format(root="/", mount=tmp_path)) == [(1, tmp_path / "system.slice" / "a:b")]


def test_a_hierarchy_that_is_mounted_in_part(tmp_path):
    """As in a container without a cgroup namespace: our path begins above the mount; spaces are escaped."""
    mounts = V1.format(root="/docker/ab", mount="/my\\040groups")
    assert [str(path) for _, path in found("4:memory,x:/docker/ab/c\n", mounts)] == ["/my groups/c"]
    assert found("4:memory:/elsewhere\n", mounts) == []
    assert found("4:memory:/../up\n", V1.format(root="/", mount=tmp_path)) == []


def test_no_memory_controller():
    """Of version 1, of version 2, or no cgroups at all."""
    assert found("4:cpu:/x\n", V1.format(root="/", mount="/m")) == []
    assert found("", "") == []


# version 2 -----------------------------------------------------------------------------------------------------------


def test_version_2_makes_them_beside_us_where_systemd_handed_over(tmp_path):
    """`Delegate=memory` and `DelegateSubgroup=provider`: the parent has no process of its own."""
    mounts = v2(tmp_path, "infless.service", "infless.service/provider", passing=["infless.service"])
    parent = tmp_path / "infless.service"
    assert found("0::/infless.service/provider\n", mounts, [parent]) == [(2, parent)]


def test_what_nobody_handed_over_is_left_alone(tmp_path):
    """Although root could: systemd is the only one to write there."""
    mounts = v2(tmp_path, "system.slice", "system.slice/infless.service", passing=["system.slice"])
    assert found("0::/system.slice/infless.service\n", mounts) == []


def test_memory_is_passed_on_in_a_group_of_ours(tmp_path, monkeypatch):
    """When it is not yet; the kernel shows then what was written, without its plus."""
    mounts = v2(tmp_path, "s", "s/provider")
    control = tmp_path / "s" / "cgroup.subtree_control"
    assert found("0::/s/provider\n", mounts) == []
    assert control.read_text() == "cpu\n"
    monkeypatch.setattr(
        cgroups, "_passes_memory_on", lambda group: group == tmp_path / "s" and "+memory" in control.read_text()
    )
    assert found("0::/s/provider\n", mounts, [tmp_path / "s"]) == [(2, tmp_path / "s")]


def test_the_root_of_the_system_may_hold_both(tmp_path):
    """No systemd: the provider runs in the root group, below which memory is on already."""
    mounts = v2(tmp_path, ".", passing=["."])
    assert found("0::/\n", mounts, [tmp_path.parent]) == [(2, tmp_path)]


def test_a_namespace_of_our_own_is_not_the_root(tmp_path):
    """A container's `/` holds its processes and passes nothing on; what is above is not ours."""
    mounts = v2(tmp_path, ".")
    assert found("0::/\n", mounts, [tmp_path, tmp_path.parent]) == []


def test_delegation_is_an_attribute(tmp_path):
    """As systemd sets it; a file system without such attributes hands nothing over."""
    assert not cgroups.delegated(tmp_path)
    try:
        os.setxattr(tmp_path, "user.delegate", b"1")
    except OSError:
        pytest.skip("no user attributes in this file system")
    assert cgroups.delegated(tmp_path)
    os.setxattr(tmp_path, "user.delegate", b"0")
    assert not cgroups.delegated(tmp_path)


# one group -----------------------------------------------------------------------------------------------------------


def group_with(tmp_path, *files):
    """A group as the kernel would make it, with these files."""
    (tmp_path / "g").mkdir()
    for name in files:
        (tmp_path / "g" / name).touch()
    return {path.name: path.read_text() for path in (tmp_path / "g").iterdir()}


@pytest.mark.parametrize(
    ("version", "files", "written"),
    [
        (2, ["memory.max", "memory.swap.max", "memory.oom.group"], ["5", "0", "1"]),
        (2, ["memory.max"], ["5"]),
        (1, ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"], ["5", "5"]),
        (1, ["memory.limit_in_bytes"], ["5"]),
    ],
)
def test_what_a_limit_is(tmp_path, version, files, written):
    """Memory, no swap where that is counted, and all of it killed together where that can be said."""
    group_with(tmp_path, *files)
    group = cgroups.make(Place(version=version, mount=tmp_path, path=tmp_path), "g", 5)
    assert {path.name: path.read_text() for path in group.iterdir()} == dict(zip(files, written, strict=True))


def test_a_limit_that_cannot_be_set_leaves_no_group(tmp_path, monkeypatch):
    """A read-only mount, or no controller."""

    def refused(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(type(tmp_path), "write_text", refused)
    with pytest.raises(PermissionError):
        cgroups.make(Place(version=2, mount=tmp_path, path=tmp_path), "g", 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "text", "count"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 1\n", 2),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n", 4),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 0),
        ("other", "", 0),
    ],
)
def test_kills_are_counted(tmp_path, file, text, count):
    """Of either version; an old kernel does not count, and a group may be gone."""
    (tmp_path / file).write_text(text)
    assert cgroups.kills(tmp_path) == count
    assert cgroups.kills(tmp_path / "gone") == 0


def test_strays_are_found_anywhere(tmp_path):
    """An earlier provider may have run in another group."""
    for folder in ("a/infless-1-f", "b/c/infless-1-g", "b/infless-2-h"):
        (tmp_path / folder).mkdir(parents=True)
    place = Place(version=1, mount=tmp_path, path=tmp_path / "a")
    assert sorted(group.name for group in cgroups.strays(place, "infless-1-")) == ["infless-1-f", "infless-1-g"]


def test_nobody_but_its_members_is_killed(tmp_path, monkeypatch):
    """0 stands for a process that we cannot see, and would kill ourselves."""
    killed = []
    monkeypatch.setattr(procfs.os, "kill", lambda pid, how: killed.append((pid, how)))
    (tmp_path / "cgroup.procs").write_text("0\n4000001\n")
    assert not cgroups.remove(tmp_path, 0.0)  # a plain folder with a file in it
    assert set(killed) == {(4000001, signal.SIGKILL)}


def test_a_group_that_is_gone_is_removed(tmp_path):
    """By systemd, say."""
    assert cgroups.remove(tmp_path / "gone", 0.0)
