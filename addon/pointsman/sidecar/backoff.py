"""How long a worker that died stays away."""

_GOOD_LIFE = 60.0
_FIRST = 1.0
_LONGEST = 30.0


class Backoff:
    """The pauses before one worker's restarts, in seconds: none, then 1, 2, 4 … 30.

    A worker that lived for a minute begins anew: its death is an accident, and the next start will
    most likely do.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def after(self, life: float) -> float:
        """Return the pause after a life of so many seconds."""
        if life >= _GOOD_LIFE:
            self._next = 0.0
        pause = self._next
        self._next = min(max(_FIRST, 2 * pause), _LONGEST)
        return pause
