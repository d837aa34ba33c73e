"""Who holds the interpreter's lock, from when a sleeper woke up; and what follows from it."""

from __future__ import annotations

import pytest

from infless_watchdog import gil
from infless_watchdog.gil import Held, held_share, measure


def woken(*gaps_s: float) -> list[float]:
    """Moments with these gaps between them."""
    moments_s = [100.0]
    for gap_s in gaps_s:
        moments_s.append(moments_s[-1] + gap_s)
    return moments_s


@pytest.mark.parametrize(
    ("wakes_s", "unscheduled_s", "share"),
    [
        (woken(*[0.001] * 50), 0.0, 0.0),
        (woken(*[0.006] * 50), 0.0, 5 / 6),  # the interpreter gives way after 5 ms
        (woken(1.0), 0.0, 0.999),  # C code that never gives way
        (woken(*[0.001] * 10, 0.021), 0.0, 20 / 31),
        (woken(*[0.006] * 50), 0.25, 0.0),  # 5 ms each for want of a processor
        (woken(*[0.006] * 50), 9.9, 0.0),
        ([], 0.0, 0.0),
        ([1.0, 1.0], 0.0, 0.0),
    ],
)
def test_late_is_held_unless_there_was_no_processor(wakes_s: list[float], unscheduled_s: float, share: float) -> None:
    """The share of the run in which a thread that meant to sleep a millisecond could not go on."""
    assert held_share(wakes_s, unscheduled_s) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "exec_s", "target_s", "felt"),
    [
        (0.9, 0.025, 0.5, True),
        (0.5, 0.025, 0.5, False),
        (0.9, 0.019, 0.5, False),
        (0.9, 0.006, 0.05, True),  # more than a tenth of the target
        (0.9, 0.004, 0.05, False),
    ],
)
def test_what_holds_it_for_a_moment_only_is_not_felt(share: float, exec_s: float, target_s: float, felt: bool) -> None:
    """Most of a run, and a run that is long by itself or for its target."""
    assert Held(share, exec_s).is_felt(target_s) is felt


@pytest.mark.parametrize(
    ("shares", "least", "runs"), [([0.9, 0.2, 0.9], 0.2, 2), ([0.9, 0.8, 0.95], 0.8, 3), ([0.1, 0.9, 0.9], 0.1, 1)]
)
def test_one_run_that_does_not_hold_it_is_enough(
    monkeypatch: pytest.MonkeyPatch, shares: list[float], least: float, runs: int
) -> None:
    """Others may have held it: a suspicion is looked at three times."""
    seen = iter(shares)
    monkeypatch.setattr(gil, "_watch", lambda run: Held(next(seen), 1.0))
    assert measure(lambda: None, 0.5).share == least
    assert len(list(seen)) == 3 - runs


def test_a_run_that_raises_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception is the caller's; the sampler has ended."""
    import threading

    def fail() -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        gil._watch(fail)
    assert "lock sampler" not in [thread.name for thread in threading.enumerate()]
