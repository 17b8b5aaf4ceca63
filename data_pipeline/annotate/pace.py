"""How fast and how dear: rate limits, waits between tries, a budget that is never exceeded."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from face_mllm.errors import UserError

LONGEST_BACKOFF = 60.0
LONGEST_WAIT = 600.0  # a longer Retry-After ends the run; it goes on where it was


class EndingError(Exception):
    """The run is ending; what has not been asked yet is left for the next one."""


class Stop:
    """Ends every wait of a run at once."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """End the run."""
        self._event.set()

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            EndingError: when the run ends before or meanwhile.
        """
        if self._event.wait(max(seconds, 0.0)):
            raise EndingError


class Pace:
    """Spaces requests evenly, so that no burst meets the endpoint's own limit.

    Args:
        requests_per_minute: None is without limit.
        tokens_per_minute: counted by estimate.
        sleep: seconds -> wait.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        sleep: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self.per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self.sleep = sleep
        self.clock = clock
        self._free = 0.0
        self._held = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: float) -> None:
        """Wait for this request's turn; ``tokens`` is what it will about take."""
        with self._lock:
            turn = max(self.clock(), self._free)
            self._free = turn + max(self.per_request, self.per_token * tokens)
        while (left := max(turn, self._held) - self.clock()) > 1e-6:  # less is rounding
            self.sleep(left)

    def hold(self, seconds: float) -> None:
        """Let nobody ask for a while: the endpoint said so."""
        with self._lock:
            self._held = max(self._held, self.clock() + seconds)


def backoff(attempt: int, base: float) -> float:
    """Seconds before try ``attempt + 1``: doubled each time, jittered so that workers spread."""
    return min(LONGEST_BACKOFF, base * 2**attempt) * random.uniform(0.5, 1.0)


def retry_after(value: str | None) -> float:
    """Return the seconds in a ``Retry-After`` header (number or date), 0 without one."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


class Budget:
    """A sum that is never exceeded: the worst case is set aside before each request.

    Args:
        limit: US dollars, None without limit.
        spent: what earlier runs of the same job spent.
    """

    def __init__(self, limit: float | None, spent: float = 0.0) -> None:
        self.limit = limit
        self.spent = spent
        self._aside = 0.0
        self._lock = threading.Lock()

    def reserve(self, worst: float) -> None:
        """Set aside what a request may cost at most.

        Raises:
            UserError: when the limit might be exceeded.
        """
        with self._lock:
            if self.limit is not None and self.spent + self._aside + worst > self.limit:
                raise UserError(
                    f"stopped before --max-cost {self.limit:g} USD: {self.spent:.4f} spent, and "
                    f"the next answer may cost {worst:.4f}",
                    "raise --max-cost and run the same command again: answers are kept",
                )
            self._aside += worst

    def settle(self, worst: float, cost: float) -> None:
        """Give back what was set aside and book what it cost."""
        with self._lock:
            self._aside -= worst
            self.spent += cost
