from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm.errors import ConflictError, InvalidInputError
from kssm.runtime import ForecastResult
from service.records import clock_from_meta, clock_to_meta
from service.sessions import (
    REPLIES_KEPT,
    Admitted,
    Clock,
    Reply,
    ReplyCache,
    SessionSettings,
    new_session,
    shape_samples,
)
from service.wire import Frame


def result(size: int = 1) -> ForecastResult:
    one = np.full((1, 3), 0.5)
    return ForecastResult(np.zeros((1, 1, size)), size, (0.5,), one)


def frame(seq: int, values=((1.0,),), stamps=None) -> Frame:
    return Frame(seq, np.array(values, dtype=np.float64), stamps)


def apply(session, seq: int) -> Reply:
    admitted = session.admit(frame(seq))
    assert isinstance(admitted, Admitted)
    return session.commit(admitted, result())


def admitted_by(session, sent: Frame) -> Admitted:
    admitted = session.admit(sent)
    assert isinstance(admitted, Admitted)
    return admitted


def steps(admitted: Admitted) -> list[float]:
    assert admitted.dt is not None
    return admitted.dt.tolist()


def fresh(**settings):
    return new_session("s", "t", SessionSettings(**settings))


def test_seq_grows_by_one_and_only_by_commit():
    session = fresh()
    session.admit(frame(0))
    assert session.next_seq == 0
    assert apply(session, 0).seq == 0
    assert apply(session, 1).seq == 1
    assert session.next_seq == 2


def test_a_gap_names_the_expected_seq():
    session = fresh()
    with pytest.raises(ConflictError) as caught:
        session.admit(frame(2))
    assert caught.value.code == "seq_gap"
    assert caught.value.details == {"expected_seq": 0}
    assert session.next_seq == 0


def test_a_duplicate_gets_the_same_answer():
    session = fresh()
    first = apply(session, 0)
    apply(session, 1)
    assert session.admit(frame(0, values=[[9.0]])) is first
    assert session.next_seq == 2


def test_an_old_duplicate_gets_an_answer_without_a_result():
    session = fresh()
    for seq in range(REPLIES_KEPT + 2):
        apply(session, seq)
    assert session.admit(frame(1)) == Reply(1, None)
    kept = session.admit(frame(2))
    assert isinstance(kept, Reply)
    assert kept.result is not None


def test_a_wrong_shape_does_not_use_up_the_seq():
    session = fresh(channels=2)
    with pytest.raises(InvalidInputError) as caught:
        session.admit(frame(0))
    assert caught.value.code == "wrong_shape"
    assert session.next_seq == 0


def test_reply_cache_is_bounded_in_size_but_keeps_the_last():
    cache = ReplyCache()
    for seq in range(3):
        cache.add(Reply(seq, result(100_000)))
    assert [reply.seq for reply in cache] == [2]
    cache.add(Reply(3, result(200_000)))
    assert [reply.seq for reply in cache] == [3]
    assert cache.find(2).result is None


def test_reset_and_fork():
    session = fresh(sample_interval=2.0)
    admitted = session.admit(frame(0, stamps=np.array([10.0])))
    assert isinstance(admitted, Admitted)
    session.commit(admitted, result())
    copy = session.fork("other")
    assert (copy.id, copy.next_seq, copy.clock) == ("other", 0, Clock(2.0, 10.0))
    session.reset()
    assert (session.next_seq, session.clock) == (1, Clock(2.0))


def test_an_imported_clock_keeps_the_sessions_own_interval():
    own, learnt = fresh(sample_interval=2.0), fresh()
    for session in (own, learnt):
        session.restore_clock(Clock(3.0, 10.0))
    assert (own.clock, learnt.clock) == (Clock(2.0, 10.0), Clock(3.0, 10.0))


def test_flat_values_are_cut_into_rows():
    flat = np.arange(6, dtype="<f4")
    shaped = shape_samples(flat, 3)
    assert shaped.dtype == np.float64
    np.testing.assert_array_equal(shaped, [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(InvalidInputError) as caught:
        shape_samples(flat, 4)
    assert caught.value.code == "truncated_frame"


def test_the_clock_divides_by_the_given_interval():
    dt, clock = Clock(0.5).advance(np.array([1.0, 1.5, 3.0]), 3)
    np.testing.assert_array_equal(dt, [1.0, 1.0, 3.0])
    dt, clock = clock.advance(np.array([4.0]), 1)
    np.testing.assert_array_equal(dt, [2.0])
    assert clock == Clock(0.5, 4.0)


def test_the_interval_is_the_median_of_the_first_message_with_several():
    _, clock = Clock().advance(np.array([0.0]), 1)
    assert clock == Clock(None, 0.0)
    dt, clock = clock.advance(np.array([4.0, 6.0, 8.0, 14.0]), 4)
    np.testing.assert_array_equal(dt, [2.0, 1.0, 1.0, 3.0])
    assert clock == Clock(2.0, 14.0)


def test_the_interval_is_else_the_first_difference():
    _, clock = Clock().advance(np.array([0.0]), 1)
    dt, clock = clock.advance(np.array([4.0]), 1)
    np.testing.assert_array_equal(dt, [1.0])
    dt, _ = clock.advance(np.array([12.0]), 1)
    np.testing.assert_array_equal(dt, [2.0])


def test_samples_without_timestamps_pass_at_the_interval():
    dt, clock = Clock(2.0, 10.0).advance(None, 3)
    assert (dt, clock) == (None, Clock(2.0, 16.0))
    assert Clock(None, 10.0).advance(None, 1)[1] == Clock()


@pytest.mark.parametrize(
    "stamps",
    [[5.0, 5.0], [6.0, 5.0], [1.0, 2.0], [np.nan, 6.0], [6.0, np.inf], [6.0], [6.0, 7.0, 8.0]],
)
def test_bad_timestamps_are_refused(stamps):
    with pytest.raises(InvalidInputError) as caught:
        Clock(1.0, 5.0).advance(np.array(stamps), 2)
    assert caught.value.code == "invalid_timestamps"


@given(st.lists(st.floats(allow_nan=True), min_size=1, max_size=5), st.floats(1e-300, 1e300))
def test_steps_are_always_finite_and_positive(stamps, interval):
    try:
        dt, clock = Clock(interval, 0.0).advance(np.array(stamps), len(stamps))
    except InvalidInputError:
        return
    assert dt is not None
    assert dt.shape == (len(stamps),)
    assert np.isfinite(dt).all()
    assert (dt > 0).all()
    assert clock.last == stamps[-1]


def test_samples_that_come_too_soon_are_not_read():
    session = fresh(sample_interval=1.0)
    stamps = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    values = tuple((float(i),) for i in range(6))
    admitted = admitted_by(session, frame(0, values, np.array(stamps)))
    assert admitted.values[:, 0].tolist() == [0.0, 4.0]
    assert steps(admitted) == [1.0, 1.0]
    assert admitted.clock == Clock(1.0, 1.25, 0.25)
    session.commit(admitted, None)
    nothing = admitted_by(session, frame(1, ((6.0,),), np.array([1.5])))
    assert nothing.values.shape == (0, 1)
    session.commit(nothing, None)
    late = admitted_by(session, frame(2, ((7.0,),), np.array([2.5])))
    assert steps(late) == [1.5]
    untimed = admitted_by(session, frame(2, ((7.0,),)))
    assert (len(untimed.values), untimed.clock.elapsed) == (1, 0.0)


def test_a_bad_value_is_refused_although_it_is_not_read():
    session = fresh(sample_interval=1.0)
    with pytest.raises(InvalidInputError) as error:
        session.admit(frame(0, ((1.0,), (1e31,)), np.array([0.0, 0.1])))
    assert error.value.code == "value_out_of_range"


def test_the_clock_survives_in_the_meta_of_a_state():
    for clock in (Clock(2.0, 10.0, 0.25), Clock(2.0, 10.0), Clock()):
        assert clock_from_meta(clock_to_meta(clock)) == clock
