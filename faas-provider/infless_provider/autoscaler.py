"""The loop: measure rates at the edge, plan when they no longer fit, reconcile. Decides nothing itself."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from infless_core.clock import Clock
from infless_core.errors import InflessError
from infless_core.lifecycle import Phase
from infless_core.model import Plan, Problem, Running, Server
from infless_core.units import format_duration
from infless_provider.controller import Controller
from infless_provider.functions import ALPHA, FunctionState
from infless_provider.reconcile import Action, Actual, Bounds, Drain, HandOver, Replace, Resize, Start, reconcile
from infless_scheduler.autoscale import needs_plan
from infless_scheduler.memory import Memory
from infless_scheduler.planner import replan

LOG = logging.getLogger("infless.autoscaler")
TICK_S = 1.0
"""Rates are counts per second (the authors' dispatcher also works by the second)."""
TIME_LIMIT_S = 5.0
"""A plan that takes longer would be about a load that has passed."""


class Autoscaler:
    """One second at a time. Runs on the event loop; only the solver runs in a thread."""

    def __init__(self, controller: Controller, server: Server, clock: Clock, solver: str) -> None:
        self._controller = controller
        self._server = server
        self._clock = clock
        self._solver = solver
        self._dirty = asyncio.Event()
        self._least: dict[str, int] = {}
        self._memory: Memory | None = None
        """What the last plan has found that is still true for the next one."""
        self._solving = ThreadPoolExecutor(max_workers=1, thread_name_prefix="solver")
        controller.on_dirty = self._dirty.set

    async def run(self) -> None:
        """Tick and plan for ever; a change (deploy, crash, scale) is planned at once, not at the next tick."""
        self._dirty.set()
        try:
            await asyncio.gather(self._tick_forever(), self._plan_forever())
        finally:
            self._solving.shutdown(wait=False, cancel_futures=True)

    async def _tick_forever(self) -> None:
        next_s = self._clock.now_s()
        while True:
            next_s = max(next_s + TICK_S, self._clock.now_s())
            await asyncio.sleep(next_s - self._clock.now_s())
            try:
                self._tick()
            except Exception:
                LOG.exception("measuring rates failed; what runs goes on running")

    async def _plan_forever(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._replan()
            except Exception:
                LOG.exception("planning failed; what runs goes on running")

    def _tick(self) -> None:
        now_s = self._clock.now_s()
        for key, function in self._controller.functions.items():
            if self._least.get(key) == 0 and function.sleeps():
                continue  # there may be thousands of them
            function.estimate = function.estimate.after(function.arrived)
            function.arrived = 0
            function.reweigh()
            windows = function.windows().values()
            reason = needs_plan(windows, function.planned_rps, function.rate_rps, ALPHA)
            function.watch, due = function.watch.after(reason, now_s)
            least = function.least(now_s)
            retry = 0 < function.retry_at_s <= now_s
            if retry:
                function.retry_at_s = 0.0
            woke_up = function.planned_rps == 0 < function.rate_rps
            if due is not None or retry or woke_up or self._least.get(key) != least:
                self._least[key] = least
                if due is not None:
                    LOG.info("%s at %.1f requests/s: %s", key, function.rate_rps, due.value)
                self._dirty.set()

    async def _replan(self) -> None:
        alive = self._controller.functions
        functions = self._awake(self._clock.now_s())
        versions = {key: function.version for key, function in functions.items()}
        problem = self._problem(functions)
        memory = self._memory
        made, self._memory = await asyncio.get_running_loop().run_in_executor(
            self._solving, lambda: replan(problem, memory, self._solver, time_limit_s=TIME_LIMIT_S)
        )
        if any(key in alive and alive[key].version != version for key, version in versions.items()):
            self._dirty.set()  # updated meanwhile: the plan speaks of instances of an older version
            return
        self._settle(problem, made)

    def _awake(self, now_s: float) -> dict[str, FunctionState]:
        """Functions that run, are asked for, or are to run. There may be thousands of others, and one event loop."""
        functions = self._controller.functions
        return {key: f for key, f in functions.items() if not f.sleeps() or f.least(now_s) > 0}

    def _settle(self, problem: Problem, made: Plan) -> None:
        """Execute a plan."""
        now_s = self._clock.now_s()
        alive = self._awake(now_s)
        rates_rps = {demand.id: demand.rate_rps for demand in problem.functions}
        for key, function in alive.items():
            function.planned_rps = rates_rps.get(key, 0.0)
            function.watch = function.watch.planned(now_s)
        for lack in made.unserved:
            LOG.warning("%s: %.1f requests/s are unserved: %s", lack.function, lack.rate_rps, lack.reason)
        bounds = {key: self._bounds(function, now_s) for key, function in alive.items()}
        actual = [
            Actual(
                id=i.id,
                function=i.function,
                configuration=i.configuration,
                ready=i.phase is Phase.READY,
                replaces=i.replaces,
            )
            for key, function in alive.items()
            # Where nothing is wanted any more, an older version that waits to be replaced goes too.
            for i in (function.current() if bounds[key].least or function.rate_rps else function.undrained())
        ]
        self._tell(made)
        for action in reconcile(made, bounds, actual):
            self._act(action, now_s)
        for function in alive.values():
            function.reweigh()

    def _tell(self, made: Plan) -> None:
        """Keep with each running instance what the newest plan wants of it, and why."""
        for wanted in made.instances:
            instance = self._controller.fleet.instances.get(wanted.id)
            function = self._controller.functions.get(wanted.function)
            if instance is not None and function is not None:
                instance.reason = (
                    f"{made.status} plan ({made.solver}): {wanted.rate_rps:.0f} of {function.planned_rps:.0f}"
                    f" requests/s; {wanted.configuration} meets"
                    f" {format_duration(function.wishes.latency_target_s)} up to {wanted.rate_up_rps:.0f}/s"
                )
                if instance.planned != wanted.configuration:  # else every plan of every second would tell the same
                    instance.planned = wanted.configuration
                    self._controller.fleet.record("plan", instance, instance.reason)

    async def problem(self) -> Problem:
        """What would be planned now, and idle functions at rate 0: who asks what-if can name them."""
        return self._problem(self._controller.functions, idle=True)

    def _problem(self, functions: dict[str, FunctionState], *, idle: bool = False) -> Problem:
        """A snapshot: idle functions have no demand, their spares hold no planned cores."""
        busy = {key: f for key, f in functions.items() if f.rate_rps > 0}
        told = functions if idle else busy
        return Problem(
            servers=(self._server,),
            functions=tuple(f.demand(f.rate_rps) for f in told.values()),
            running=tuple(
                Running(
                    id=i.id, function=key, server=self._server.id, gpu=None, configuration=i.configuration
                )
                for key, f in busy.items()
                for i in f.current()
            ),
            alpha=ALPHA,
        )  # fmt: skip

    def _bounds(self, function: FunctionState, now_s: float) -> Bounds:
        return Bounds(least=function.least(now_s), most=function.wishes.scale_max, spare=function.spare())

    def _act(self, action: Action, now_s: float) -> None:
        fleet, functions = self._controller.fleet, self._controller.functions
        try:
            match action:
                case Start(function=key, configuration=configuration, reason=reason):
                    if now_s >= functions[key].retry_at_s:
                        fleet.start(functions[key], configuration, reason)
                case Resize(id=id_, configuration=configuration):
                    fleet.resize(fleet.instances[id_], configuration)
                case Replace(id=id_, function=key, configuration=configuration, reason=reason):
                    taken = any(i.replaces == id_ for i in functions[key].instances.values())
                    if not taken and now_s >= functions[key].retry_at_s:
                        fleet.start(functions[key], configuration, reason, replaces=id_)
                case HandOver(id=id_, to=heir):
                    fleet.instances[heir].replaces = id_
                case Drain(id=id_, reason=reason):
                    fleet.drain(fleet.instances[id_], reason)
        except (KeyError, InflessError) as error:
            # It vanished between the plan and now, or could not be done: the next plan starts from what is.
            LOG.warning("%s was not possible: %s", action, error)
