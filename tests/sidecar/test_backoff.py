"""How long a worker that died stays away."""

from pointsman.sidecar.backoff import Backoff


def test_the_first_restart_is_at_once_and_the_pauses_grow_to_half_a_minute() -> None:
    backoff = Backoff()
    pauses = [backoff.after(life=0.5) for _ in range(9)]
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_minute_of_good_life_lets_it_begin_anew() -> None:
    backoff = Backoff()
    for _ in range(4):
        backoff.after(life=59)
    assert backoff.after(life=60) == 0
    assert backoff.after(life=1) == 1
