"""The way of one request, whatever it came by: admission, decode, prepare, batch, finish, encode, deliver."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infless_watchdog import oip_about
from infless_watchdog.batcher import Batcher
from infless_watchdog.batching import BatchPolicy
from infless_watchdog.calls import Call, Model, Reply
from infless_watchdog.curve import copies_of
from infless_watchdog.isolation import ItemError, Refusal, as_item_error, run_isolated
from infless_watchdog.metrics import Metrics
from infless_watchdog.settings import Settings

LOG = logging.getLogger("infless.watchdog")


class Pipeline:
    """One loaded model and its queue. All methods run on the event loop, but `warm_up`."""

    def __init__(self, model: Model, settings: Settings, metrics: Metrics, on_hang: Callable[[], None]) -> None:
        self.model = model
        self.settings = settings
        self.metrics = metrics
        policy = BatchPolicy(
            batch_max=settings.batch_max,
            latency_target_s=settings.latency_target_s,
            wait_max_s=settings.wait_max_s,
            keep_up_load=settings.keep_up_load,
        )
        self.batcher = Batcher(
            model, policy, metrics, self._answered, exec_timeout_s=settings.exec_timeout_s, on_hang=on_hang
        )
        # Looked up once: these are called for each request.
        self._decode, self._bucket, self._write = model.decode, model.bucket, model.encode
        self._prepare, self._finish = model.prepare, model.finish
        self._queue_max, self._in_flight_max = settings.queue_max, settings.max_inflight or math.inf
        self._on_hang = on_hang
        self._in_pool = 0
        self._pool = ThreadPoolExecutor(max_workers=max(2, settings.cpu_cores), thread_name_prefix="prepare")

    def warm_up(self) -> None:
        """Run the batch sizes in use: the first user must not pay for lazy initialisation. Runs in a thread."""
        try:
            example = self.model.example()
            if example is not None and self.model.prepare is not None:
                example = self.model.prepare(example)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - nobody's request
            LOG.warning("example() in handler.py raised %s: %s", type(error).__name__, error)
            return
        if example is None:
            return
        bucket = self.model.bucket(example)
        largest = self.batcher.policy.batch_max
        # A first run is lazy initialisation, and says little of the time. A GPU chooses its kernels for each size anew;
        # a runtime on the CPU has little to initialise: the start is short, and the first batches tell the rest.
        quick = self.model.brief and self.model.device == "cpu"
        sizes = [1] if quick else [1, largest, 1]
        if self.model.device != "cpu":
            sizes += [2**power for power in range(1, largest.bit_length()) if 2**power < largest]
        for place, size in enumerate(sizes):
            run = run_isolated(self.model.predict, copies_of(example, size))
            failed = next((answer for answer in run.answers if isinstance(answer, ItemError)), None)
            if failed is not None:
                LOG.warning("the handler fails on its own example() in a batch of %d: %s", size, failed)
            elif place or quick:
                self.batcher.learn(bucket, size, run)

    def begin(self) -> None:
        """The model is warm."""
        self.reconfigure(self.batcher.policy)  # warming up may have shown that it cannot batch
        self.metrics.fallback = int(self.model.device != self.settings.model_device)
        # What is there now stays: the collector need not look at it again and again. Nor is it to look at each 700 new
        # objects, which are no garbage but requests under way.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()

    def reconfigure(self, policy: BatchPolicy) -> None:
        """Batch and wait as the provider wishes, from the next decision on."""
        self.batcher.reconfigure(policy)

    async def set_cpu_cores(self, cpu_cores: int) -> None:
        """Threads as the provider wishes, from the next run on; what takes long is done before it."""
        if self.model.prepare_cores is not None:
            await asyncio.get_running_loop().run_in_executor(self._pool, self.model.prepare_cores, cpu_cores)
        await self.batcher.between_runs(lambda: self.model.set_cpu_cores(cpu_cores))

    def refusal(self) -> Refusal | None:
        """Why no request can be taken now."""
        settings = self.settings
        if self.metrics.in_flight >= self._in_flight_max:
            return Refusal(429, f"max_inflight, {settings.max_inflight}, is reached")
        if self.batcher.waiting + self._in_pool >= settings.queue_max:
            return Refusal(503, f"{settings.queue_max} requests are waiting already")
        return None

    def submit(self, call: Call, deliver: Callable[[Call, Any], None]) -> None:
        """Take one request; `deliver(call, reply or fault)` follows once, on the event loop, unless it is withdrawn."""
        metrics = self.metrics
        call.arrived_s, call.deliver, call.withdrawn, call.live = time.monotonic(), deliver, self._withdrawn, True
        fault: ItemError | None = None
        if metrics.in_flight >= self._in_flight_max or self.batcher.waiting + self._in_pool >= self._queue_max:
            fault = self.refusal()
        metrics.received += 1
        metrics.in_flight += 1
        if fault is None:
            try:
                call.item = self._decode(call)
            except Exception as error:  # noqa: BLE001 - answered, as every request is
                fault = error if isinstance(error, ItemError) else _internal("the request cannot be read", error)
        if fault is not None:
            self._deliver(call, fault)
        elif self._prepare is None:
            self._enqueue(call, call.item)
        else:
            self._beside(call, self._prepare, call.item, self._enqueue)

    def _withdrawn(self, call: Call) -> None:
        del call
        self.metrics.gone += 1
        self.metrics.in_flight -= 1
        self.batcher.forget_withdrawn()

    def statistics(self) -> dict[str, Any]:
        """Triton's statistics extension."""
        return oip_about.statistics(self.settings.function_name, self.metrics.counts())

    def config(self) -> dict[str, Any]:
        """Triton's model configuration extension."""
        said = self.model.metadata()
        return oip_about.config(said["name"], self.batcher.policy.batch_max, said["inputs"], said["outputs"])

    def close(self) -> None:
        """Give threads and the model back."""
        self.batcher.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        try:
            self.model.close()
        except Exception:
            LOG.exception("close() in handler.py failed")

    # beside the batches ----------------------------------------------------------------------------------------------

    def _enqueue(self, call: Call, item: Any) -> None:
        call.item = item
        try:
            self.batcher.submit(call, self._bucket(item))
        except Exception as error:  # noqa: BLE001 - a bucket may be of the user's own type
            self._deliver(call, _internal("the request cannot be queued", error))

    def _answered(self, call: Call, answer: Any) -> None:
        if isinstance(answer, ItemError):
            self.metrics.failed_items += 1
            self._deliver(call, answer)
        elif self._finish is None:
            self._encode(call, answer)
        else:
            self._beside(call, self._finish, answer, self._encode)

    def _beside(self, call: Call, work: Callable[[Any], Any], value: Any, then: Callable[[Call, Any], None]) -> None:
        """Run `work(value)` in the pool, then `then(call, result)`; an exception is the request's answer."""
        loop, limit_s = asyncio.get_running_loop(), self.settings.exec_timeout_s
        errand = _Errand(call, work)
        watch = None if math.isinf(limit_s) else loop.call_later(limit_s, self._too_long, errand)
        self._in_pool += 1

        def worked(done: asyncio.Future[Any]) -> None:
            self._in_pool -= 1
            if watch is not None:
                watch.cancel()
            if not call.live or done.cancelled():
                return
            result, error = done.result()
            if error is None:
                then(call, result)
            else:
                self._deliver(call, as_item_error(error))

        loop.run_in_executor(self._pool, errand.run, value).add_done_callback(worked)

    def _too_long(self, errand: _Errand) -> None:
        """Nobody waits any longer; a thread that does not come back only ends with the whole worker."""
        limit_s = self.settings.exec_timeout_s
        if errand.call.live:
            self._deliver(errand.call, ItemError(504, f"no answer within exec_timeout, {limit_s:g} s"))
        if errand.started_s is None or errand.ended:
            return  # it stood behind others in the pool; there it is skipped
        left_s = errand.started_s + limit_s - time.monotonic()
        if left_s > 0:
            asyncio.get_running_loop().call_later(left_s, self._too_long, errand)
        else:
            self._on_hang()

    def _encode(self, call: Call, answer: Any) -> None:
        try:
            outcome: Reply | ItemError = self._write(answer, call.item, call)
        except ItemError as fault:
            outcome = fault
        except Exception as error:  # noqa: BLE001 - an answer that cannot be written is this request's fault alone
            outcome = _internal("the answer cannot be written", error)
        self._deliver(call, outcome)

    def _deliver(self, call: Call, outcome: Reply | ItemError) -> None:
        call.live = False
        metrics = self.metrics
        metrics.in_flight -= 1
        metrics.answered(outcome.status, call.head.method, time.monotonic() - call.arrived_s)
        call.deliver(call, outcome)


class _Errand:
    """Work on one request in the pool."""

    __slots__ = ("_work", "call", "ended", "started_s")

    def __init__(self, call: Call, work: Callable[[Any], Any]) -> None:
        self.call = call
        self._work = work
        self.started_s: float | None = None
        self.ended = False

    def run(self, value: Any) -> tuple[Any, BaseException | None]:
        """The result, or what was raised: as a value, since no future carries a StopIteration (before Python 3.12)."""
        if not self.call.live:
            return None, None
        self.started_s = time.monotonic()
        try:
            return self._work(value), None
        except BaseException as error:  # noqa: BLE001 - the user's code; also its sys.exit()
            return None, error
        finally:
            self.ended = True


def _internal(what: str, error: Exception) -> ItemError:
    fault = ItemError(500, f"{what}: {error}")
    fault.__cause__ = error
    return fault
