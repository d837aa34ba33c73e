"""Operator profiling against whole models: `python -m benchmarks.cop [MODEL ...] [--part PART ...]`.

Thirteen models one after the other into one fresh database, then each measured whole. Compared are:

* composed and corrected times with the whole model's, every point, leave one model out: a model's own whole times
  are used for nothing that predicts it (operators that it shares with others may be);
* how many executions take longer than planned;
* the time that profiling took against measuring the whole model at every point (two warm-ups, then at least 7 runs and
  half a second, as `--verify` does), and against four executions of each, the least that is still measuring;
* (part `observe`) the same after 200 batches that an instance would have run and counted, against others of that time.

Parts: `compose`, `whole` and `observe` measure and keep raw numbers in build/cop-bench, `report` works the figures out
and writes the record and the picture. Nothing is left out of any figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.cop_models import CATALOGUE, prepare
from infless_core.model import Configuration
from infless_profiler.accuracy import accuracy
from infless_profiler.around import MODEL
from infless_profiler.cop import Profiler
from infless_profiler.correction import WholeTime, learn
from infless_profiler.model_file import ModelFile, input_feeds, parse_shapes, read_model
from infless_profiler.observe import Observed, Prior
from infless_profiler.operator_times import Worker
from infless_profiler.prediction import Grid, Profile
from infless_profiler.readings import Counted, Series
from infless_profiler.sessions import Device, machine, this_device
from infless_profiler.tables import Tables
from infless_profiler.timing import WHOLE, Effort
from infless_profiler.worker import ModelJob, Place

RAW = Path("build/cop-bench")
PICTURE = Path("docs/reference/cop-accuracy.png")
GRID = Grid(batches=(1, 2, 4, 8, 16, 32), cpu_cores=(1, 2))
ROUNDS = 2
"""Of whole measurements: minutes apart, so that one bad minute of the machine is not the truth."""
BATCHES = 300
"""That are run of each model for `observe`, over all configurations: two of three are counted, the third is the truth
that they are compared with, from the same minute."""
_BOUNDS = tuple(mantissa * 10.0**power for power in range(-4, 2) for mantissa in (1, 1.5, 2, 3, 5, 7))
"""As the watchdog's buckets, six per decade."""


def main(arguments: Sequence[str]) -> int:
    """Run the parts asked for, in order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(CATALOGUE))
    parser.add_argument("--part", nargs="+", default=["compose", "whole", "observe", "report"])
    asked = parser.parse_args(arguments)
    RAW.mkdir(parents=True, exist_ok=True)
    if "compose" in asked.part:
        compose(asked.models)
    if "whole" in asked.part:
        whole(asked.models)
    if "observe" in asked.part:
        observe(asked.models)
    if "report" in asked.part:
        report()
    return 0


def compose(names: Sequence[str]) -> None:
    """Profile the models one after the other, into one new database."""
    database = RAW / "operators.sqlite"
    database.unlink(missing_ok=True)
    tables = Tables(database, this_device(), machine())
    for place, name in enumerate(names, 1):
        with Profiler(tables) as profiler:
            profile = profiler.profile(_file(name), GRID)
        _keep(f"{name}.composed", {"place": place, "name": name, **_composed(name, profile)})
        _tell(f"{place}. {name}: composed in {profile.profiling_s:.1f} s")


def _composed(name: str, profile: Profile) -> dict[str, Any]:
    return {
        "source": CATALOGUE[name].source,
        "calls": len(profile.graph.calls),
        "operators": len(profile.graph.operators),
        "new_operators": profile.new_operators,
        "as_one_piece": any(call.operator.type == MODEL for call in profile.graph.calls),
        "operator_times_measured": profile.new_points,
        "operator_times_needed": profile.needed_points,
        "profiling_s": profile.profiling_s,
        "points": [
            {
                "batch": one.point.batch,
                "cpu_cores": one.point.cpu_cores,
                "composed_s": one.composed_s,
                "spread": one.spread,
                "features": one.features,
            }
            for one in profile.predictions
        ],
    }


def whole(names: Sequence[str]) -> None:
    """Measure each model whole, in new processes, twice."""
    device = this_device()
    executions: dict[str, list[list[float]]] = {}
    whole_s = dict.fromkeys(names, 0.0)
    for turn in range(ROUNDS):
        for name in names:
            begun_s = time.perf_counter()
            found = [
                samples_s
                for cores in GRID.cpu_cores
                for samples_s in _executions(_file(name), device, cores, GRID.batches, WHOLE)
            ]
            whole_s[name] += (time.perf_counter() - begun_s) / ROUNDS
            executions[name] = [old + new for old, new in zip(executions.get(name, [[]] * 12), found, strict=True)]
            _tell(f"{name}: measured whole, round {turn + 1}")
    for name in names:
        _keep(f"{name}.whole", {"whole_s": whole_s[name], "executions_s": executions[name]})


def observe(names: Sequence[str]) -> None:
    """Run 300 batches of each model, in new processes."""
    device = this_device()
    each = -(-BATCHES // (len(GRID.batches) * len(GRID.cpu_cores)))
    effort = Effort(warm_ups=1, runs_min=each, runs_max=each, least_s=0.0)
    for name in names:
        file = _file(name)
        found = [
            samples_s
            for cores in GRID.cpu_cores
            for samples_s in _executions(file, device, cores, GRID.batches, effort)
        ]
        if {len(samples_s) for samples_s in found} != {each}:
            raise RuntimeError(f"{name}: not all of {each} batches were run at each point")
        _keep(f"{name}.observed", {"observed_s": found})
        _tell(f"{name}: {each} batches observed in each configuration")


def _executions(
    file: ModelFile, device: Device, cores: int, batches: tuple[int, ...], effort: Effort
) -> list[list[float]]:  # fmt: skip
    feeds, _ = input_feeds(file)
    with Worker(Place(device=device, cpu_cores=cores)) as worker:
        job = ModelJob(path=file.path, feeds=feeds, batches=batches, effort=effort)
        return [list(one.samples_s) for one in worker.do(job)]


def _keep(name: str, raw: dict[str, Any]) -> None:
    (RAW / f"{name}.json").write_text(json.dumps(raw, indent=1))


def _read(composed: Path) -> dict[str, Any]:
    """A model's raw numbers, from all parts."""
    raw: dict[str, Any] = json.loads(composed.read_text())
    measured = json.loads((RAW / f"{raw['name']}.whole.json").read_text())
    raw["whole_s"] = measured["whole_s"]
    for point, executions_s in zip(raw["points"], measured["executions_s"], strict=True):
        point["executions_s"] = executions_s
    observed = RAW / f"{raw['name']}.observed.json"
    if observed.exists():
        for point, observed_s in zip(raw["points"], json.loads(observed.read_text())["observed_s"], strict=True):
            point["observed_s"] = observed_s
    return raw


def report() -> None:
    """Work out errors from the raw numbers, leave one model out; write the record and the picture."""
    raws = sorted(map(_read, RAW.glob("*.composed.json")), key=lambda raw: int(raw["place"]))
    rows = {raw["name"]: [_row(raw["name"], point) for point in raw["points"]] for raw in raws}
    models = []
    for raw in raws:
        others = [row for name, found in rows.items() if name != raw["name"] for row in found]
        correction = learn(others)
        for point, row in zip(raw["points"], rows[raw["name"]], strict=True):
            point["expected_s"] = correction.corrected_s(row.composed_s, row.features)
            point["planned_s"] = point["expected_s"] * correction.margin
            point["measured_s"] = float(np.median(point["executions_s"]))
            point["error"] = point["expected_s"] / point["measured_s"] - 1
        models.append({**_figures(raw), "margin": correction.margin})
        _observed(raw)
        if "after_s" in raw["points"][0]:
            models[-1]["observed_batches"] = sum(len(_counted_s(point)) for point in raw["points"])
            models[-1]["after_observed"] = _errors(_held_out(raw), "after_s", "after_planned_s")
        print(_line(models[-1]))
    results = {"models": models, "all": _summary(models, raws), "points": _points(raws)}
    print(json.dumps(results["all"], indent=1))
    record.write("cop", "python -m benchmarks.cop", results, show=False)
    _draw(raws)


def _row(name: str, point: dict[str, Any]) -> WholeTime:
    return WholeTime(
        model=name,
        features=tuple(point["features"]),
        composed_s=point["composed_s"],
        executions_s=tuple(point["executions_s"]),
    )


def _figures(raw: dict[str, Any]) -> dict[str, Any]:
    kept = (
        "place", "name", "source", "calls", "operators", "new_operators", "as_one_piece", "operator_times_measured",
        "operator_times_needed", "profiling_s", "whole_s",
    )  # fmt: skip
    bare = [
        {**point, "expected_s": point["composed_s"], "planned_s": point["composed_s"]} for point in raw["points"]
    ]  # fmt: skip
    return {
        **{key: raw[key] for key in kept},
        "profiling_over_whole": raw["profiling_s"] / raw["whole_s"],
        "profiling_over_four_executions": raw["profiling_s"]
        / (4 * sum(float(np.median(point["executions_s"])) for point in raw["points"])),
        "bare_sum": _errors({"points": bare}, "expected_s", "planned_s"),
        "corrected": _errors(raw, "expected_s", "planned_s"),
    }


def _errors(raw: dict[str, Any], expected: str, planned: str) -> dict[str, Any]:
    found = accuracy(
        [point[expected] for point in raw["points"]],
        [point[planned] for point in raw["points"]],
        [point["executions_s"] for point in raw["points"]],
    )
    return asdict(found) if found else {}


def _observed(raw: dict[str, Any]) -> None:
    """What the live estimator makes of the observed batches, in windows of 5 batches each."""
    if "observed_s" not in raw["points"][0]:
        return
    observed = (
        Observed()
        .after(0.0, [])
        .expecting(
            "f",
            [
                Prior(
                    configuration=Configuration(batch=point["batch"], cpu_cores=point["cpu_cores"]),
                    expected_s=point["expected_s"],
                    margin=point["planned_s"] / point["expected_s"],
                )
                for point in raw["points"]
            ],
        )
    )
    for window in range(1, 1 + -(-len(_counted_s(raw["points"][0])) // 5)):
        observed = observed.after(5.0 * window, [_counted(point, 5 * window) for point in raw["points"]])
    corrected = {one.configuration: one for one in observed.correct("f")}
    factors = observed.factors("f")
    for point in raw["points"]:
        configuration = Configuration(batch=point["batch"], cpu_cores=point["cpu_cores"])
        point["after_s"] = point["expected_s"] * factors.get(configuration, 1.0)
        point["after_planned_s"] = corrected[configuration].exec_s


def _counted_s(point: dict[str, Any]) -> list[float]:
    """Two of three executions, in order."""
    return [exec_s for place, exec_s in enumerate(point["observed_s"]) if place % 3 != 2]


def _held_out(raw: dict[str, Any]) -> dict[str, Any]:
    """The same points with the executions that were not counted, in place of those of another time."""
    return {"points": [{**point, "executions_s": point["observed_s"][2::3]} for point in raw["points"]]}


def _counted(point: dict[str, Any], batches: int) -> Counted:
    """The first batches of a configuration as the watchdog's histogram counts them."""
    samples = np.asarray(_counted_s(point)[:batches])
    buckets = tuple((bound, float((samples <= bound).sum())) for bound in (*_BOUNDS, float("inf")))
    series = Series(
        instance="one", function="f", batch=point["batch"], cpu_cores=point["cpu_cores"], gpu_percent=0
    )  # fmt: skip
    return Counted(series=series, buckets=buckets, count=float(len(samples)), total_s=float(samples.sum()))


def _summary(models: list[dict[str, Any]], raws: list[dict[str, Any]]) -> dict[str, Any]:
    everything = {"points": [point for raw in raws for point in raw["points"]]}
    return {
        "corrected": _errors(everything, "expected_s", "planned_s"),
        "models_with_mean_error_above_10_percent": [m["name"] for m in models if m["corrected"]["mean"] > 0.1],
        "models_with_p90_above_20_percent": [m["name"] for m in models if m["corrected"]["p90"] > 0.2],
        "eighth_model": next(
            ({"name": m["name"], "profiling_over_whole": m["profiling_over_whole"]} for m in models if m["place"] == 8),
            None,
        ),
        **(
            {
                "after_observed": _errors(_held_out(everything), "after_s", "after_planned_s"),
                "models_with_mean_error_above_5_percent_after": [
                    m["name"] for m in models if m["after_observed"]["mean"] > 0.05
                ],
            }
            if "after_s" in everything["points"][0]
            else {}
        ),
    }


def _points(raws: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every point, in few digits."""
    keys = ("batch", "cpu_cores", "composed_s", "expected_s", "planned_s", "measured_s", "error", "after_s")
    return [
        {"model": raw["name"], **{key: _round(point[key]) for key in keys if key in point}}
        for raw in raws
        for point in raw["points"]
    ]


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _line(model: dict[str, Any]) -> str:
    bare, corrected, after = model["bare_sum"], model["corrected"], model.get("after_observed")
    return (
        f"{model['place']:2} {model['name']:17} bare {bare['mean']:6.1%}  corrected {corrected['mean']:6.1%}"
        f"  p90 {corrected['p90']:6.1%}  max {corrected['max']:6.1%}  late {corrected['exceed_share']:6.1%}"
        f"  time {model['profiling_over_whole']:5.2f} of {model['whole_s']:5.1f} s"
        + (
            f"  after {model['observed_batches']}: {after['mean']:5.1%}, late {after['exceed_share']:5.1%}"
            if after
            else ""
        )
    )


def _draw(raws: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 7.2), layout="constrained")
    colours = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for raw, colour in zip(raws, colours, strict=False):
        for cores, marker in ((1, "o"), (2, "^")):
            points = [point for point in raw["points"] if point["cpu_cores"] == cores]
            axes.scatter(
                [1000 * point["measured_s"] for point in points], [1000 * point["expected_s"] for point in points],
                s=20, color=colour, marker=marker, label=raw["name"] if cores == 1 else None,
            )  # fmt: skip
    ends = np.array(axes.get_xlim()) * (0.5, 2.0)
    ends[0] = max(ends[0], 0.05)
    for factor, style in ((1.0, "-"), (0.9, ":"), (1.1, ":")):
        axes.plot(ends, factor * ends, style, color="#697586", linewidth=0.9)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set_xlabel("measured whole, ms (median execution)")
    axes.set_ylabel("predicted from operators, ms; no whole time of the model itself used")
    axes.set_title(
        f"Every point: {len(raws)} models, batch 1 to 32, one core (circles) and two (triangles)", loc="left", size=11
    )
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=130)
    plt.close(figure)


def _file(name: str) -> ModelFile:
    model = CATALOGUE[name]
    samples = {key: np.array(value) for key, value in model.values.items()}
    return read_model(prepare(name), parse_shapes(model.shapes), samples, name)


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if shutil.which("nproc") is None:
        sys.exit("this benchmark pins processes to cores, which needs Linux")
    sys.exit(main(sys.argv[1:]))
