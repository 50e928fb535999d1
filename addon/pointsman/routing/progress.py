"""How far a request has come with its plan, and whether and when it goes on after a failure."""

from pointsman.config.table import RetryCondition, RetryPolicy, Target
from pointsman.routing.planning import LONGEST_BACKOFF, Plan, backoff


class Progress:
    """The attempts of one request. Times are readings of one monotonic clock in seconds.

    `once`: the request can't be sent again, whatever the plan and the policy say.
    """

    def __init__(self, plan: Plan, policy: RetryPolicy, *, once: bool) -> None:
        self._plan = plan
        self._policy = policy
        self._once = once
        self._made = 0
        # When a target may be called again, by its place in the plan: its Retry-After.
        self._not_before: dict[int, float] = {}

    def next_target(self) -> Target:
        """Begin an attempt; return its target."""
        self._made += 1
        return self._plan.target(self._made - 1)

    @property
    def left(self) -> bool:
        """Whether the plan has another attempt."""
        return not self._once and self._made < self._plan.attempts

    def may_retry(self, condition: RetryCondition | None) -> bool:
        """Tell whether a failure of this kind, now, would lead to another attempt."""
        return condition is not None and condition in self._policy.on and self.left

    @property
    def may_repeat(self) -> bool:
        """Whether the request may be sent twice, where the plan has no other attempt."""
        policy = self._policy
        forbidden = self._once or policy.attempts == 1 or "reset" not in policy.on
        return not (forbidden or self.left)

    def pause_after(
        self, condition: RetryCondition, now: float, retry_after: float, jitter: float
    ) -> float | None:
        """End an attempt as failed; return the seconds to wait before the next, None if none is.

        `retry_after` is what the provider has asked for, in seconds; `jitter` see `backoff`. There
        is no pause before another target, but for one that asked for it.
        """
        targets = len(self._plan.order)
        self._not_before[(self._made - 1) % targets] = now + retry_after
        if not self.may_retry(condition):
            return None
        turn, following = divmod(self._made, targets)
        if turn == 0:
            return 0.0
        wait = max(self._not_before.get(following, now) - now, 0.0)
        if wait > LONGEST_BACKOFF:
            return None
        return wait if following else max(backoff(self._policy, turn - 1, jitter), wait)
