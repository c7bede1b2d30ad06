"""A child that is to run for as long as the service does: started again when it dies. Knows nothing of what it does."""

import signal
from collections.abc import Callable
from time import monotonic

from workers.embedded.process import Child, ServerError

_FIRST_DELAY, _LAST_DELAY = 0.25, 30.0
# After this many seconds of life a death counts as the first again.
_SETTLED = 30.0


class Part:
    """One child and the function that starts it; `say` tells the person at the terminal."""

    def __init__(self, child: Child, start: Callable[[], None], say: Callable[[str], None]) -> None:
        self.child = child
        self._start = start
        self._say = say
        self._deaths = 0
        self._started_at = 0.0
        self._due_at: float | None = None

    def start(self) -> None:
        """Start it now; raises ServerError as its start function does."""
        self._due_at = None
        self._started_at = monotonic()
        self._start()

    def tend(self) -> None:
        """Look once: a dead child is announced, and started again when its delay, longer each time, is over."""
        if self.child.running:
            return
        if self._due_at is None:
            self._plan_restart()
        elif monotonic() >= self._due_at:
            self._restart()

    def _plan_restart(self) -> None:
        self._deaths = 1 if monotonic() - self._started_at > _SETTLED else self._deaths + 1
        delay = min(_LAST_DELAY, _FIRST_DELAY * 2 ** (self._deaths - 1))
        self._due_at = monotonic() + delay
        how = _ending(self.child.returncode)
        self._say(f"{self.child.name} {how}, see {self.child.log}; starting it again in {delay:g} s")

    def _restart(self) -> None:
        try:
            self.start()
        except (ServerError, OSError) as error:
            self._say(str(error))
        else:
            self._say(f"{self.child.name} runs again")


def _ending(returncode: int | None) -> str:
    if returncode is None:
        return "did not start"
    return f"ended with status {returncode}" if returncode >= 0 else f"was killed by {signal.Signals(-returncode).name}"
