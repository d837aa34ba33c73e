"""The user's `handler.py`: importing it, its functions by name, and what is said when they fail."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infless_watchdog.calls import LoadError
from infless_watchdog.loop_thread import LoopThread


class HandlerModule:
    """An imported handler.py. Its async functions look like plain ones: they run on a loop in a thread of its own.

    Args:
        folder: of the function, absolute.
        exec_timeout_s: after which an async run is cancelled.

    Raises:
        LoadError: it cannot be imported, or its `load()` raised.
    """

    def __init__(self, folder: Path, exec_timeout_s: float) -> None:
        self.folder = folder
        self.path = folder / "handler.py"
        self.loop = LoopThread(exec_timeout_s)
        self.sample: Any | None = None
        """What `example()` gave last: for the document, which is written on the event loop."""
        self._module = _import(folder)
        if (load := self.own("load")) is not None:
            try:
                load()
            except (Exception, SystemExit) as error:
                self.loop.close()
                raise LoadError(f"load() in {self.path} raised {told(error, folder)}") from error

    def function(self, name: str) -> Callable[..., Any] | None:
        """What requests are served by; it may come from anywhere."""
        function = getattr(self._module, name, None)
        return function if callable(function) else None

    def own(self, name: str) -> Callable[..., Any] | None:
        """An optional function of the user's folder. `from joblib import load` brings another one of that name."""
        function = self.function(name)
        home = str(getattr(function, "__module__", "")).partition(".")[0]
        return self.loop.plain(function) if function is not None and home == self.folder.name else None

    def example(self) -> Any | None:
        """What the user's `example()` gives, if there is one."""
        make = self.own("example")
        self.sample = None if make is None else make()
        return self.sample

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """The user's `set_cpu_cores(n)`, if there is one: nobody else knows what threads a handler has."""
        if (change := self.own("set_cpu_cores")) is not None:
            change(cpu_cores)

    def close(self) -> None:
        """The user's `close()`, if there is one; then the end of the loop."""
        try:
            if (end := self.own("close")) is not None:
                end()
        finally:
            self.loop.close()

    def forget(self) -> None:
        """Close it and drop the folder's modules, so that what they hold can be freed."""
        self.close()
        for name in [name for name in sys.modules if name.partition(".")[0] == self.folder.name]:
            del sys.modules[name]
        del self._module


def told(error: BaseException, folder: Path) -> str:
    """What went wrong, and the last line of the user's own code that was on the way there."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(f"{folder}/")]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def _import(folder: Path) -> Any:
    parent = str(folder.parent)
    if parent not in sys.path:
        sys.path.insert(0, parent)
    packages = folder.parent / "packages"  # what `infless build` installed for this function alone
    if packages.is_dir() and str(packages) not in sys.path:
        sys.path.insert(1, str(packages))
    try:
        return importlib.import_module(f"{folder.name}.handler")
    except (Exception, SystemExit) as error:
        raise LoadError(f"{folder / 'handler.py'} cannot be imported: {told(error, folder)}") from error
