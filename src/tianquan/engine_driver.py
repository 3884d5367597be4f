"""Stepping engines on a thread of their own while there is work, and handing each output to who asked.

Callers wait for outputs and can be interrupted; an engine cannot be, halfway through a step. Engines that share a
processor share the thread: it steps each that has work in turn, so that two never compute at once and none waits for
more than a step of each of the others. The thread ends when all requests have, so a model nobody uses is held by
nothing. A process that ends meanwhile stops the thread first: kernels must not run while the interpreter and their
library are taken apart under them.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from tianquan.engine.engine import Engine
from tianquan.engine.interface import EngineRequest, EngineStatistics, RequestOutput
from tianquan.errors import ModelError

logger = logging.getLogger(__name__)

Listener = Callable[[RequestOutput], None]
_Waiting = tuple[Listener, Callable[[Exception], None]]  # who hears outputs, and who hears of a failure


class StepThread:
    """A thread while there is something to step, for one engine or for several that take turns."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of everything here and of the drivers' listeners; never held during a step
        self._busy: deque[EngineDriver] = deque()  # those with requests, the next one first
        self._thread: threading.Thread | None = None
        self._is_ending = False  # the process

    def begin(self, driver: EngineDriver) -> None:
        """See to it that a driver is stepped until its requests have ended. The lock is held by the caller."""
        if driver not in self._busy:
            self._busy.append(driver)
        if self._thread is None or not self._thread.is_alive():  # after a fork the child has none of its parent's
            thread = threading.Thread(target=self._run, name="tianquan-engine", daemon=True)
            thread.start()
            self._thread = thread
            atexit.register(self._stop_at_exit)

    def _run(self) -> None:
        try:
            while (driver := self._next()) is not None:
                driver.step()
        except BaseException as error:
            if self._is_ending:
                return
            logger.exception("the engine's thread stopped")
            with self.lock:
                left = list(self._busy)
                self._busy.clear()
                self._thread = None
            for driver in left:  # nobody may wait for ever
                driver.give_up(error)

    def _next(self) -> EngineDriver | None:
        """Return whose turn it is; None, and the thread ends, when no driver has a request."""
        with self.lock:
            while self._busy:
                driver = self._busy.popleft()
                if driver.has_requests:
                    self._busy.append(driver)
                    return driver
            self._thread = None
            atexit.unregister(self._stop_at_exit)
            return None

    def _stop_at_exit(self) -> None:
        """Stop the thread between two operations, whatever it has left: nobody will ask for it any more."""
        thread = self._thread
        if thread is None or thread.ident is None:
            return
        self._is_ending = True
        leave = ctypes.py_object(SystemExit)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), leave)
        thread.join()


class EngineDriver:
    """The one owner of an engine. Every method but `step` may be called from any thread.

    Args:
        engine: what it steps.
        thread: where; a thread of its own by default. Engines of one pool of kernel threads share one.
    """

    def __init__(self, engine: Engine, thread: StepThread | None = None) -> None:
        self.engine = engine
        self._thread = thread or StepThread()
        self._listeners: dict[int, _Waiting] = {}

    @property
    def has_requests(self) -> bool:
        """True while somebody waits for an output."""
        return bool(self._listeners)

    def submit(self, request: EngineRequest, listener: Listener, on_failure: Callable[[Exception], None]) -> int:
        """Queue a request and return its id.

        Args:
            request: what to answer.
            listener: called on the stepping thread with each output, the last one included; must be quick.
            on_failure: called instead of a last output if the engine itself breaks.

        Raises:
            ParameterError, PromptError: see `Engine.add`.
            ModelError: the system lets this process make no thread to step on.
        """
        with self._thread.lock:
            request_id = self.engine.add(request)
            self._listeners[request_id] = (listener, on_failure)
            try:
                self._thread.begin(self)
            except RuntimeError as error:
                del self._listeners[request_id]
                self.engine.abort(request_id)
                raise ModelError(f"the engine has no thread to run on ({error}); let this process make more") from error
        return request_id

    def abort(self, request_id: int) -> None:
        """End a request; its listener hears of it. Nothing happens if it has ended."""
        self.engine.abort(request_id)

    def statistics(self) -> EngineStatistics:
        """Return a snapshot; counts of a step in progress may be partly in it."""
        return self.engine.statistics()

    def step(self) -> None:
        """Do one step and hand out what it gave. For the stepping thread only."""
        try:
            outputs = self.engine.step()
        except Exception as error:
            logger.exception("the engine stopped")
            self._give_up(error)
            return
        for output in outputs:
            self._deliver(output)

    def _deliver(self, output: RequestOutput) -> None:
        with self._thread.lock:
            entry = self._listeners.get(output.request_id)
            if output.end is not None:
                self._listeners.pop(output.request_id, None)
        if entry is None:
            return
        try:
            entry[0](output)
        except Exception:  # one caller's mistake must not end the others' answers
            logger.exception("a listener of request %d failed", output.request_id)
            self.engine.abort(output.request_id)

    def _give_up(self, error: Exception) -> None:
        """End every request after a failure of the engine itself, and start over with an empty engine."""
        with self._thread.lock:
            entries = list(self._listeners.values())
            self._listeners.clear()
            message = "the engine failed and was started anew; the log tells why"
            try:
                self.engine = self.engine.started_anew()
            except Exception:  # it keeps what it had; what is asked next tries again
                logger.exception("the engine cannot be started anew")
                message = "the engine failed and could not be started anew; the log tells why"
        self._tell(entries, message, error)

    def give_up(self, error: BaseException) -> None:
        """End every request, with the engine as it is: nothing steps it any more."""
        with self._thread.lock:
            entries = list(self._listeners.values())
            self._listeners.clear()
        self._tell(entries, "the engine was stopped; the log tells why", error)

    @staticmethod
    def _tell(entries: Sequence[_Waiting], message: str, error: BaseException) -> None:
        failure = ModelError(message)
        failure.__cause__ = error
        for _, on_failure in entries:
            try:
                on_failure(failure)
            except Exception:  # whose caller is gone
                logger.exception("a caller could not be told that the engine failed")
