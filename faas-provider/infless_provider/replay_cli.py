"""`infless replay`: open-loop load on one function. Figures on stdout, progress on stderr; exit 0, 1 (failures), 2."""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
import zlib
from pathlib import Path

import click
import uvloop

from infless_core.errors import InvalidInput
from infless_core.units import format_duration, parse_duration_s
from infless_provider.replay import Stream, Tick, parse_url, replay
from infless_provider.shots import Shot, Summary, percentile, summarise
from infless_provider.upstream import Header
from infless_scheduler.arrivals import poisson_arrivals_s

_PATH = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("replay")
@click.option("--url", required=True, help="http://HOST:PORT/function/NAME")
@click.option("--rate", "rate_rps", type=click.FloatRange(0, min_open=True), help="Mean requests per second (Poisson).")
@click.option("--duration-s", type=click.IntRange(1), help="Length in seconds, with --rate.")
@click.option("--trace", type=_PATH, help="CSV or CSV.gz of rates in requests per second, one row per bin.")
@click.option("--column", help="Column of the trace: a name, or a number from 1. Default: the last.")
@click.option("--bin-s", type=click.IntRange(1), default=1, show_default=True, help="Seconds that one row lasts.")
@click.option("--scale", type=click.FloatRange(0, min_open=True), default=1.0, help="Multiply the trace's rates.")
@click.option("--body", "bodies", type=_PATH, multiple=True, help="File to send; several are sent in turn.")
@click.option("--content-type", default="application/octet-stream", show_default=True, help="Of the bodies.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A further header; may be repeated.")
@click.option("--target", default="500ms", show_default=True, help="Latency target that the figures are held against.")
@click.option("--timeout", default="10s", show_default=True, help="From when a request is due; then it has failed.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same arrival times.")
@click.option("--max-connections", type=click.IntRange(1), default=512, show_default=True, help="To the server.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Write a PNG of every request.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def replay_command(  # noqa: PLR0913, PLR0917 - one argument for each option
    url: str, rate_rps: float | None, duration_s: int | None, trace: Path | None, column: str | None, bin_s: int,
    scale: float, bodies: tuple[Path, ...], content_type: str, headers: tuple[str, ...], target: str, timeout: str,
    seed: int, max_connections: int, picture: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Send requests at their due times, whether or not earlier ones are answered, and report what came back.

    Latency counts from when a request was due. Failed and wrong answers count as infinitely late.

    \b
    infless replay --url http://127.0.0.1:8080/function/voice-activity --rate 50 --duration-s 30 --target 200ms
    infless replay --url http://127.0.0.1:8080/function/voice-activity --trace day.csv.gz --column rps --bin-s 60
    """  # noqa: D301 - click reads the escape as "keep these lines"
    target_s, timeout_s = parse_duration_s(target, "--target"), parse_duration_s(timeout, "--timeout")
    parse_url(url)
    rates_rps = _rates(rate_rps, duration_s, trace, column, bin_s, scale)
    stream = Stream(
        function=url.rstrip("/").rpartition("/")[2] or url,
        url=url,
        arrivals_s=poisson_arrivals_s(rates_rps, random.Random(seed)),  # noqa: S311 - load, not secrets
        bodies=[path.read_bytes() for path in bodies] or [b""],
        headers=(_header(f"content-type:{content_type}"), *map(_header, headers)),
    )
    if picture is not None:
        from infless_provider import report

        report.require()
    shots = uvloop.run(
        replay(
            [stream],
            timeout_s=timeout_s,
            max_connections=max_connections,
            progress=lambda tick: click.echo(progress_line(tick, len(rates_rps)), err=True),
        )
    )
    summary = summarise(shots, target_s, len(rates_rps))
    click.echo(json.dumps(summary.as_json(), indent=1) if as_json else summary_text(summary))
    if picture is not None:
        _draw(picture, stream.function, target_s, shots)
    if summary.failed:
        sys.exit(1)


def progress_line(tick: Tick, length_s: int) -> str:
    """One second in one line."""
    answered = [shot for shot in tick.finished if shot.ok]
    failed = len(tick.finished) - len(answered)
    p99 = format_duration(percentile([shot.latency_s for shot in answered], 99)) if answered else "-"
    return (
        f"{tick.at_s:5.0f}/{length_s} s  due {tick.sent:5d}  answered {len(answered):5d}"
        f"  failed {failed:4d}  p99 {p99:>7}  waiting {tick.waiting}"
    )


def summary_text(summary: Summary) -> str:
    """The figures for a person, one per line."""
    errors = ", ".join(f"{count} x {fault}" for fault, count in summary.errors.items()) or "none"
    times = ((50, summary.p50_s), (95, summary.p95_s), (99, summary.p99_s))
    lines = [
        f"requests       {summary.requests}",
        f"offered        {summary.offered_rps:.1f} rps",
        f"achieved       {summary.achieved_rps:.1f} rps",
        *(f"p{percent}            {_latency(latency_s)}" for percent, latency_s in times),
        f"within target  {summary.share_within_target:.2%} of {format_duration(summary.target_s)}",
        f"errors         {errors}",
        f"wrong          {summary.wrong}",
    ]
    if summary.late_p99_s > 0.1 * summary.target_s:
        lines.append(f"note           the load generator itself was {_latency(summary.late_p99_s)} late (p99)")
    return "\n".join(lines)


def read_rates(path: Path, column: str | None, bin_s: int, scale: float = 1.0) -> list[float]:
    """Requests per second, one value for each second, from a CSV whose rows last `bin_s` seconds.

    Args:
        path: may end in `.gz`; a first row without numbers is the header.
        column: a name from the header, or a number from 1; None takes the last.
        bin_s: seconds that a row lasts.
        scale: multiplies every rate.

    Raises:
        InvalidInput: names the file, the row and what is wrong.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [row for row in csv.reader(data.decode().splitlines()) if row]
    except (OSError, UnicodeDecodeError, EOFError, zlib.error, csv.Error) as error:
        raise InvalidInput(f"{path} cannot be read as CSV: {error}") from None
    header = rows.pop(0) if rows and not any(_is_number(cell) for cell in rows[0]) else []
    place = _place(path, header, column, len(header or (rows[0] if rows else [])))
    rates_rps: list[float] = []
    for number, row in enumerate(rows, start=2 if header else 1):
        cell = row[place] if len(row) > place else ""
        if not _is_number(cell) or float(cell) < 0:
            raise InvalidInput(f"{path}, row {number}: {cell!r} is not a rate in requests per second")
        rates_rps += [float(cell) * scale] * bin_s
    if not rates_rps:
        raise InvalidInput(f"{path} holds no rates")
    return rates_rps


def _rates(
    rate_rps: float | None, duration_s: int | None, trace: Path | None, column: str | None, bin_s: int, scale: float
) -> list[float]:
    if (trace is None) == (rate_rps is None):
        raise click.UsageError("give either --rate with --duration-s, or --trace")
    if trace is not None:
        if duration_s is not None:
            raise click.UsageError("--duration-s goes with --rate; a trace has its own length")
        return read_rates(trace, column, bin_s, scale)
    if duration_s is None or rate_rps is None:
        raise click.UsageError("--rate needs --duration-s")
    return [rate_rps] * duration_s


def _place(path: Path, header: list[str], column: str | None, width: int) -> int:
    if column is None:
        return max(0, width - 1)
    if column in header:
        return header.index(column)
    if column.isdigit() and 1 <= int(column) <= width:
        return int(column) - 1
    raise InvalidInput(f"{path} has no column {column!r}; there are {', '.join(header) or f'1 to {width}'}")


def _is_number(cell: str) -> bool:
    try:
        return abs(float(cell)) < float("inf")
    except ValueError:
        return False


def _header(text: str) -> Header:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isascii() or not text.isprintable():
        raise InvalidInput(f"--header {text!r}: write NAME:VALUE")
    return name.strip().lower().encode(), value.strip().encode()


def _latency(seconds: float) -> str:
    return "infinite: too many failed" if seconds == float("inf") else format_duration(seconds)


def _draw(path: Path, function: str, target_s: float, shots: list[Shot]) -> None:
    from infless_provider import report

    panel = report.Panel(function=function, target_s=target_s, shots=tuple(shots))
    report.draw(path, [report.Column(title="open-loop load", panels=(panel,))])
    click.echo(f"picture: {path}", err=True)
