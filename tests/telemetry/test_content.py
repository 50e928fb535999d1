"""How much of what was said is held, and for how long."""

from pointsman.telemetry.content import MAX_BODY, Kept, Room


def test_an_answer_is_kept_up_to_a_limit() -> None:
    kept = Kept(Room())
    kept.add(b"a" * MAX_BODY)
    kept.add(b"b")
    kept.add(b"")
    assert len(kept.data) == MAX_BODY
    assert kept.full


def test_nothing_is_kept_after_a_chunk_that_did_not_fit() -> None:
    kept = Kept(Room(size=10))
    for chunk in (b"12345678", b"too much", b"9"):
        kept.add(chunk)
    assert kept.data == b"12345678"
    assert kept.full


def test_all_share_the_room_and_give_it_back() -> None:
    room = Room(size=10)
    first, second = Kept(room), Kept(room)
    first.add(b"123456")
    assert not second.take(5)
    second.add(b"12345")
    assert second.full
    first.clear()
    assert not first.data
    second.clear()
    assert not second.full
    second.add(b"0123456789")
    assert second.data == b"0123456789"
    first.clear()  # twice gives nothing back twice
    assert not room.take(1)
