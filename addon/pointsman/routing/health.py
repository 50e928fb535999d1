"""Which targets are set aside, from what their attempts came to: passive outlier detection.

A target is healthy until so many attempts in a row fail, or until a provider says with a 429 when
to come back. Then it is ejected for a while, each time in a row for twice as long. When the time is
over one attempt goes through: the probe. It decides between healthy and the next, longer ejection.

The rules that this module keeps:
- An attempt that began before an ejection tells nothing new: it neither ends nor lengthens it.
  Attempts carry no mark, so this is known only where none has begun since; where one has, the
  first result counts, whichever attempt it comes from. Only a Retry-After always counts.
- An answer that breaks off is a failure, however well it began: one that is only begun resets no
  count. But it ends an ejection, as answers may last for minutes.
- A probe bars the others no longer than the base ejection. One that takes longer still decides.
- Whether an ejected target is called all the same, as no other is left, is for the plan to say.
- Only targets with failures are remembered, so there are never more than targets.

The terms are Envoy's (outlier detection, consecutive failures, ejection time); the probe is the
half-open state of a circuit breaker. `now` is in seconds of one monotonic clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pointsman.config.table import Ejection, Target

type TargetKey = tuple[str, str | None, int | None, tuple[str, int] | None]
type State = Literal["healthy", "probing", "ejected"]
STATES: tuple[State, ...] = ("healthy", "probing", "ejected")  # from the best to the worst

_MOST_DOUBLINGS = 64  # past any cap, and far from where floats end


def target_key(target: Target) -> TargetKey:
    """Return what a target is known by over reloads, and in every rule that has it."""
    return (target.host, target.scheme, target.port, target.address)


@dataclass(slots=True)
class _Trouble:
    """A target that has failed. Times are seconds; None: not ejected, no probe."""

    failures: int = 0  # in a row, while it is healthy
    ejections: int = 0  # in a row
    ejected_until: float | None = None
    tried: bool = False  # whether an attempt has begun since it was ejected
    probe_until: float | None = None

    def probing(self, now: float) -> bool:
        return self.probe_until is not None and now < self.probe_until

    def eject(self, until: float) -> None:
        self.ejections += 1
        self.ejected_until = until
        self.tried = False
        self.probe_until = None


class Health:
    """What the attempts of one instance have shown of its targets.

    Each attempt is begun, may be `answering`, and ends in one of `succeeded`, `failed` and
    `abandoned`. How soon and
    for how long a target is ejected is its own `ejection`; a base of 0 seconds leaves that to
    Retry-After, and a most of 0 switches it off.
    """

    def __init__(self) -> None:
        self._troubles: dict[TargetKey, _Trouble] = {}

    def available(self, target: Target, now: float) -> bool:
        """Tell whether an attempt may be made: healthy, or due for a probe that no one makes."""
        trouble = self._troubles.get(target_key(target))
        if trouble is None or trouble.ejected_until is None:
            return True
        return now >= trouble.ejected_until and not trouble.probing(now)

    def state(self, target: Target, now: float) -> State:
        """Return the state. A target that is due for a probe is still `ejected`."""
        trouble = self._troubles.get(target_key(target))
        if trouble is None or trouble.ejected_until is None:
            return "healthy"
        return "probing" if trouble.probing(now) else "ejected"

    def begin(self, target: Target, now: float) -> None:
        """An attempt starts; it is the probe if the target is due for one."""
        trouble = self._troubles.get(target_key(target))
        if trouble is None or trouble.ejected_until is None:
            return
        trouble.tried = True
        if now >= trouble.ejected_until and not trouble.probing(now):
            trouble.probe_until = now + target.ejection.base

    def answering(self, target: Target, now: float) -> None:  # noqa: ARG002 (as its siblings)
        """An attempt's answer has begun well, and may last long: the target is called again.

        Whether it ends well is not known yet: one more failure ejects it anew, for longer.
        """
        trouble = self._troubles.get(target_key(target))
        if trouble and trouble.ejected_until is not None and trouble.tried:
            trouble.ejected_until = trouble.probe_until = None
            trouble.failures = target.ejection.consecutive_failures - 1

    def succeeded(self, target: Target, now: float) -> None:  # noqa: ARG002 (as its siblings)
        """An attempt went well to its end: the target is healthy, its failures count anew."""
        key = target_key(target)
        trouble = self._troubles.get(key)
        if trouble and (trouble.ejected_until is None or trouble.tried):
            del self._troubles[key]

    def failed(self, target: Target, now: float, retry_after: float | None = None) -> None:
        """An attempt failed.

        `retry_after` is the provider's own word, in seconds, on when to come back: it ejects at
        once for that long, within the most. 0 is no reason to eject.
        """
        key = target_key(target)
        trouble = self._troubles.setdefault(key, _Trouble())
        asked = retry_after if retry_after is not None and retry_after > 0 else None
        until = now + _duration(target.ejection, trouble.ejections, asked)
        if trouble.ejected_until is None:
            trouble.failures += 1
            due = asked or trouble.failures >= target.ejection.consecutive_failures
        else:
            due = trouble.tried and now >= trouble.ejected_until
        if due and until > now:
            trouble.eject(until)
        elif due:
            del self._troubles[key]
        elif asked and trouble.ejected_until is not None:
            trouble.ejected_until = max(trouble.ejected_until, until)

    def abandoned(self, target: Target, now: float) -> None:  # noqa: ARG002 (as its siblings)
        """An attempt ended and shows nothing, as its client left: the next may probe."""
        if trouble := self._troubles.get(target_key(target)):
            trouble.probe_until = None

    def keep(self, targets: Iterable[Target]) -> None:
        """Forget all targets but these: those of a new table.

        An attempt still under way on a target that is gone may bring it back, until the next time.
        """
        keys = {target_key(target) for target in targets}
        self._troubles = {key: found for key, found in self._troubles.items() if key in keys}


def _duration(ejection: Ejection, in_a_row: int, asked: float | None) -> float:
    """Return for how long a target is ejected after so many ejections, in seconds."""
    if asked is not None:
        return min(asked, ejection.most)
    return min(ejection.base * 2.0 ** min(in_a_row, _MOST_DOUBLINGS), ejection.most)
