"""Pictures of servers: small ones whole, ids escaped, large clusters at a readable size."""

import re
from xml.etree import ElementTree

import pytest
from benchmarks.problems import fleet, paper_cluster

from infless_core.clock import ManualClock
from infless_core.model import Configuration, FunctionDemand, Gpu, Problem, ProfilePoint, Server
from infless_scheduler.picture import servers_as_svg, servers_as_text
from infless_scheduler.planner import plan

SVG = "{http://www.w3.org/2000/svg}"


def _problem(*ids, servers=("s0",), rate_rps=40.0, **more):
    shapes = [Configuration(batch=1, cpu_cores=4, gpu_percent=30), Configuration(batch=1, cpu_cores=2)]
    functions = tuple(
        FunctionDemand(
            id=id_, latency_target_s=0.2, rate_rps=rate_rps, max_batch=1,
            profile=(ProfilePoint(configuration=shapes[n % 2], exec_s=0.05),),
        )
        for n, id_ in enumerate(ids)
    )  # fmt: skip
    gpus = (Gpu(id="g0", memory_bytes=1), Gpu(id="g1", memory_bytes=1))
    hosts = tuple(Server(id=id_, cpu_cores=16, memory_bytes=1, gpus=gpus, **more) for id_ in servers)
    return Problem(servers=hosts, functions=functions)


def _drawn(problem):
    made = plan(problem, "greedy", clock=ManualClock())
    svg = servers_as_svg(problem, made)
    return servers_as_text(problem, made, width=80), svg, ElementTree.fromstring(svg)


def test_small_picture_whole():
    """Blocks have the size of what instances take; each begins with a capital letter."""
    text, _, _ = _drawn(_problem("ssd", "lstm", servers=("s0", "s1")))
    assert text == (
        "    cores                  GPU 1                  GPU 2\n"
        "s0 [BbbBbAaaaaAaaaa.....] [AaaaaaAaaaaa........] [....................]\n"
        "empty: s1\n"
        "\n"
        "a ssd (2 instances, 40/s)\n"
        "b lstm (2 instances, 40/s)\n"
        "4 instances on 1 of 2 servers; those in use are filled: cores 75%, GPUs 30%\n"
    )


def test_colours_are_as_wide_as_letters():
    """Without its colour codes the coloured picture is the plain one."""
    problem = paper_cluster()
    made = plan(problem, "greedy", clock=ManualClock())
    coloured = servers_as_text(problem, made, colour=True)
    assert "\x1b[30;48;5;" in coloured
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured) == servers_as_text(problem, made)


def test_ids_are_escaped():
    """Ids are data: neither markup nor what a terminal obeys gets through."""
    text, svg, root = _drawn(_problem('<b a="1">&\x1b[2J', servers=("</svg>&'\x00",)))
    assert "<b" not in svg
    assert "\x1b" not in svg + text
    assert "\x00" not in svg + text
    labels = [element.text for element in root.iter(f"{SVG}text")]
    assert any(label.startswith('<b a="1">&') for label in labels)
    assert any(label.startswith("</svg>&'") for label in labels)


def test_tooltips_say_what_an_instance_is():
    """Each block's title has the id, the configuration, the rate and what is to be done."""
    _, _, root = _drawn(_problem("ssd"))
    titles = [element.text for element in root.iter(f"{SVG}title")]
    assert titles.count("ssd-1: ssd (b=1, c=4, g=30%), 20/s of at most 20/s, start") == 2


def test_nothing_is_drawn_from_outside():
    """The picture is whole in itself: no links, scripts or fonts."""
    _, svg, _ = _drawn(_problem("ssd"))
    assert not re.search(r"href|<script|@import|url\((?!#)", svg)
    assert "prefers-color-scheme: dark" in svg


def test_what_is_unserved_and_draining_is_said():
    """Totals name what is not served; servers being drained are counted."""
    text, svg, _ = _drawn(_problem("ssd", rate_rps=900.0))
    assert "unserved: 820/s of ssd" in text
    assert "unserved: 820/s of ssd" in svg
    text, svg, _ = _drawn(_problem("ssd", draining=True))
    assert "empty: s0 (1 of them being drained)" in text
    assert "1 empty: s0 (1 of them being drained)" in svg


def test_alike_servers_are_shown_once():
    """Servers that are filled alike take one row of text; the picture shows each while there are few."""
    problem = _problem("ssd", servers=[f"s{n}" for n in range(3)], rate_rps=200.0)
    text, _, root = _drawn(problem)
    assert text.splitlines()[1].startswith("2 like s0 [")
    assert len(list(root.iter(f"{SVG}g"))) > 0
    assert [element.text for element in root.iter(f"{SVG}text") if element.text in ("s0", "s1", "s2")] == [
        "s0",
        "s1",
        "s2",
    ]


@pytest.mark.parametrize("servers", [200, 2000])
def test_large_clusters_stay_readable(servers):
    """However many servers: some dozen rows, and a picture of a few hundred kilobytes."""
    problem = fleet(servers, 60, fill=0.3)
    text, svg, root = _drawn(problem)
    assert len(text.splitlines()) < 90
    assert max(map(len, text.splitlines())) <= 110
    assert len(svg) < 500_000
    assert svg.count('class="card"') <= 60
    assert float(root.get("viewBox").split()[3]) < 4000
    assert "more servers in" in text
    assert "other fillings" in svg


def test_more_functions_than_letters():
    """Beyond the letters there is one sign for the rest; hues repeat with hatchings."""
    text, svg, _ = _drawn(_problem(*(f"f{n:02}" for n in range(60)), servers=[f"s{n}" for n in range(40)]))
    assert "# 10 more functions" in text
    assert "#" in text.split("\n\n", maxsplit=1)[0]
    assert svg.count("<pattern") == 60 - 8
