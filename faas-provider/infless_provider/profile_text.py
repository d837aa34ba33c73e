"""Pure: what `infless profile` prints, from one JSON form that `--json` prints as it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from infless_core.units import format_bytes, format_duration

if TYPE_CHECKING:
    from infless_profiler.prediction import Profile
    from infless_profiler.tables import ProfiledModel, Tables


def to_json(profile: Profile) -> dict[str, Any]:
    """A profile that was just made."""
    from infless_profiler.accuracy import accuracy

    verified = [one for one in profile.predictions if one.executions_s]
    errors = accuracy(
        [one.expected_s for one in verified],
        [one.planned_s for one in verified],
        [one.executions_s for one in verified],
    )
    return {
        "model": profile.graph.name,
        "digest": profile.graph.digest,
        "device": profile.device.name,
        "runtime": profile.device.runtime,
        "calls": len(profile.graph.calls),
        "operators": {"new": profile.new_operators, "reused": profile.reused_operators},
        "operator_times": {"measured": profile.new_points, "needed": profile.needed_points},
        "profiling_s": profile.profiling_s,
        "whole_s": profile.whole_s,
        "whole_was_measured": profile.whole_was_measured,
        "correction": {"models": profile.correction.models, "margin": profile.correction.margin},
        "predictions": [_prediction(one) for one in profile.predictions],
        "errors": asdict(errors) if errors else None,
        "warnings": list(profile.warnings),
    }


def _prediction(one: Any) -> dict[str, Any]:
    measured_s = one.measured_s
    return {
        "batch": one.point.batch,
        "cpu_cores": one.point.cpu_cores,
        "gpu_percent": one.point.gpu_percent,
        "composed_s": one.composed_s,
        "expected_s": one.expected_s,
        "planned_s": one.planned_s,
        "spread": one.spread,
        "measured_share": one.measured_share,
        "memory_bytes": one.memory_bytes,
        **({} if measured_s is None else {"measured_s": measured_s, "error": one.expected_s / measured_s - 1}),
    }


def settled_json(model: ProfiledModel, tables: Tables) -> dict[str, Any]:
    """A profile out of the database: measured whole where it was, else composed and corrected as is known now."""
    from infless_profiler.correction import learn, settle

    correction = learn(tables.whole_times(model.name, model.about.get("inter_op_threads", 1)))
    predictions = []
    for one in model.times:
        settled = settle(one.composed_s, one.features, one.executions_s, correction)
        predictions.append(
            {
                "batch": one.point.batch,
                "cpu_cores": one.point.cpu_cores,
                "gpu_percent": one.point.gpu_percent,
                "composed_s": one.composed_s,
                "expected_s": settled.expected_s,
                "planned_s": settled.planned_s,
                "memory_bytes": one.memory_bytes,
                **({"measured_s": settled.expected_s} if one.executions_s else {}),
            }
        )
    about = model.about
    return {
        "model": model.name,
        "digest": model.digest,
        "device": tables.device.name,
        "runtime": tables.device.runtime,
        "profiled_at": _date(model.profiled_at_s),
        "calls": about.get("calls", 0),
        "operators": {"new": about.get("new_operators", 0), "reused": about.get("reused_operators", 0)},
        "operator_times": {"measured": about.get("new_points", 0), "needed": about.get("needed_points", 0)},
        "profiling_s": about.get("profiling_s", 0.0),
        "whole_s": about.get("whole_s", 0.0),
        "correction": {"models": correction.models, "margin": correction.margin},
        "predictions": predictions,
        "warnings": about.get("warnings", []),
    }


def model_head(model: ProfiledModel) -> dict[str, Any]:
    """One line of `infless profile list`."""
    return {
        "name": model.name,
        "digest": model.digest,
        "profiled_at": _date(model.profiled_at_s),
        "operators": model.about.get("operators", 0),
        "configurations": len(model.times),
        "measured_whole": sum(1 for one in model.times if one.executions_s),
    }


def _date(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at_s))


def of_profile(told: Mapping[str, Any]) -> str:
    """For people: a table, what it cost, errors and warnings."""
    operators, times = told["operators"], told["operator_times"]
    distinct = operators["new"] + operators["reused"]
    lines = [
        f"{told['model']} on {told['device']}, {told['runtime']}: {told['calls']} calls of {distinct} operators",
        "",
        *_table(told["predictions"]),
        "",
        f"operators: {operators['new']} new, {operators['reused']} known before",
        f"operator times: {times['measured']} of {times['needed']} measured in {format_duration(told['profiling_s'])}",
        _saved(told),
        _corrected(told["correction"]),
    ]
    errors = told.get("errors")
    if errors:
        lines.append(
            f"errors over all {errors['points']} points: mean {errors['mean']:.1%}, median {errors['median']:.1%},"
            f" p90 {errors['p90']:.1%}, max {errors['max']:.1%};"
            f" {errors['exceed_share']:.1%} of the executions took longer than planned"
        )
    lines += [f"note: {warning}" for warning in told["warnings"]]
    return "\n".join(lines)


def _table(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    gpu = any(one["gpu_percent"] for one in predictions)
    measured = any("measured_s" in one for one in predictions)
    head = f"{'batch':>6}{'cores':>7}{'gpu':>6}" if gpu else f"{'batch':>6}{'cores':>7}"
    sure = any("spread" in one for one in predictions)
    head += f"{'expected':>11}{'sure to':>9}" if sure else f"{'expected':>11}"
    head += f"{'planned':>10}{'requests/s':>12}{'memory':>11}"
    head += f"{'measured':>11}{'error':>8}" if measured else ""
    lines = [head]
    for one in predictions:
        line = f"{one['batch']:>6}{one['cpu_cores']:>7}" + (f"{one['gpu_percent']:>5}%" if gpu else "")
        line += f"{format_duration(one['expected_s']):>11}" + (f"{one['spread']:>9.1%}" if sure else "")
        line += f"{format_duration(one['planned_s']):>10}"
        line += f"{one['batch'] / one['planned_s']:>12,.0f}{format_bytes(one['memory_bytes']):>11}"
        if "measured_s" in one:
            line += f"{format_duration(one['measured_s']):>11}"
            line += f"{one['error']:>+8.1%}" if "error" in one else ""
        lines.append(line)
    return lines


def _saved(told: Mapping[str, Any]) -> str:
    how = "took" if told.get("whole_was_measured") else "would take about"
    saved_s = told["whole_s"] - told["profiling_s"]
    ratio = told["whole_s"] / max(told["profiling_s"], 1e-9)
    ends = f"{format_duration(saved_s)} saved, {ratio:.1f} times as fast" if saved_s > 0 else "nothing saved this time"
    return f"measuring the whole model at every point {how} {format_duration(told['whole_s'])}: {ends}"


def _corrected(correction: Mapping[str, Any]) -> str:
    models = correction["models"]
    if not models:
        return (
            f"correction: none yet, planned with a margin of {correction['margin'] - 1:.0%};"
            " --verify measures models whole, and the next ones learn from it"
        )
    return f"correction learned from {models} model{'s' if models > 1 else ''}, margin {correction['margin'] - 1:.0%}"


def of_list(told: Mapping[str, Any]) -> str:
    """For people: models, then what the tables hold."""
    lines = [
        f"{one['name']:24} {one['digest'][:8]}  {one['profiled_at']}  {one['operators']:>4} operators"
        f"  {one['configurations']:>3} configurations, {one['measured_whole']} measured whole"
        for one in told["models"]
    ]
    lines.append(
        f"{told['operator_times']} times of {told['operators']} operators on {told['device']}, {told['runtime']}"
        f" ({told['database']})"
    )
    return "\n".join(lines)


def of_functions(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """For people: functions that were timed whole."""
    lines = []
    for name, points in tables.items():
        lines.append(f"{name}: " + ("" if points else "it has no example(), so its speed is learned from its answers"))
        lines += [
            f"  batch {point['batch']:3}  cores {point['cpu_cores']}  {format_duration(point['exec_s']):>8}"
            f"  {point['batch'] / point['exec_s']:8.0f} requests/s"
            for point in points
        ]
    return "\n".join(lines)
