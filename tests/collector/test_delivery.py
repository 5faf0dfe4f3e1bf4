"""Frames count once, and what waited in a spool is as old as it is."""

from instep_agent.wire import ClockAnchor, Frame
from instep_collector.delivery import SEQUENCES_KEPT, Deliveries


def frame(sequence, *, at=0.0, boot="b", epoch="e"):
    return Frame(
        cluster="",
        node="n",
        boot_id=boot,
        agent_epoch=epoch,
        sequence=sequence,
        anchor=ClockAnchor(boot_id=boot, monotonic_ns=int(at * 1e9), realtime_ns=0, uncertainty_ns=0),
    )


def test_a_frame_is_seen_once_per_boot_epoch_and_sequence():
    deliveries = Deliveries()
    deliveries.mark(frame(5))
    assert deliveries.is_seen(frame(5))
    assert not deliveries.is_seen(frame(4))
    assert not deliveries.is_seen(frame(5, epoch="other"))
    assert not deliveries.is_seen(frame(5, boot="other"))


def test_memory_is_bounded_and_what_fell_out_of_it_counts_as_seen():
    deliveries = Deliveries()
    for sequence in range(3 * SEQUENCES_KEPT):
        deliveries.mark(frame(sequence))
    assert deliveries.is_seen(frame(0))
    assert not deliveries.is_seen(frame(3 * SEQUENCES_KEPT))


def test_a_spooled_frame_is_as_old_as_it_waited_whatever_the_clocks_say():
    deliveries = Deliveries()
    assert deliveries.delay_seconds(frame(0, at=5000.0), 100.0) == 0.0
    assert deliveries.delay_seconds(frame(1, at=5001.0), 101.01) < 0.02
    assert abs(deliveries.delay_seconds(frame(2, at=5002.0), 122.0) - 20.0) < 0.01
    assert deliveries.delay_seconds(frame(3, at=5022.0), 122.0) < 0.02


def test_a_node_that_slept_is_not_late_for_ever():
    deliveries = Deliveries()
    deliveries.delay_seconds(frame(0, at=1000.0), 0.0)
    late = [deliveries.delay_seconds(frame(n, at=1000.0 + n), 100.0 + n) for n in range(1, 90)]
    assert late[0] > 99.0
    assert late[-1] == 0.0


def test_a_spool_that_takes_minutes_to_empty_stays_as_old_as_it_is():
    deliveries = Deliveries()
    deliveries.delay_seconds(frame(0, at=1000.0), 0.0)
    for number in range(180):  # An hour without the server, given ten seconds of frames a second.
        sent, came = 1.0 + 10.0 * number, 3600.0 + number
        assert abs(deliveries.delay_seconds(frame(number, at=1000.0 + sent), came) - (came - sent)) < 0.01


def test_a_server_that_starts_again_goes_on_with_the_distance_that_it_kept():
    deliveries = Deliveries()
    deliveries.expect("n", "b", -1000.0, now=5000.0)
    assert abs(deliveries.delay_seconds(frame(0, at=2000.0), 5000.0) - 4000.0) < 0.01
    assert deliveries.delay_seconds(frame(1, at=6000.0), 5000.0) == 0.0
    assert deliveries.delay_seconds(frame(0, at=2000.0, boot="other"), 5000.0) == 0.0, "of it nothing is known"
