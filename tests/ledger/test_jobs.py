"""Jobs: claimed by one, carried on after a death, retried, given up, replayed; ended once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from service.errors import JobNotReplayable, UnknownJob
from service.ledger import jobs as jobs_module
from service.ledger.jobs import LeaseLost, NewJob, Priority
from service.ledger.tables import job as job_table


def job(key="a", **more):
    return NewJob(kind="series", key=key, plan={"rule": "r"}, **more)


def lapse(ledger):
    """What passing time does to every lease."""
    with ledger.database.writing() as connection:
        connection.execute(update(job_table).values(lease_until=0.0))


@pytest.fixture(autouse=True)
def no_back_off(monkeypatch):
    monkeypatch.setattr(jobs_module, "BACKOFF_S", (0.0,))


def test_a_job_is_claimed_once_and_equal_keys_are_one_job(ledger):
    assert ledger.jobs.add(job()) == ledger.jobs.add(job())
    assert ledger.jobs.claim("one") is not None
    assert ledger.jobs.claim("two") is None


def test_urgent_goes_before_routine_and_interactive_before_both(ledger):
    for priority in (Priority.ROUTINE, Priority.INTERACTIVE, Priority.URGENT):
        ledger.jobs.add(job(priority.name, priority=priority))
    order = [ledger.jobs.get(ledger.jobs.claim("w").job_id).priority for _ in range(3)]
    assert order == ["interactive", "urgent", "routine"]


def test_many_workers_share_many_jobs_without_doubling_one(ledger):
    ids = {ledger.jobs.add(job(str(number))) for number in range(40)}

    def drain(owner):
        taken = []
        while lease := ledger.jobs.claim(owner):
            ledger.jobs.end(lease, state="done")
            taken.append(lease.job_id)
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [job_id for some in pool.map(drain, map(str, range(6))) for job_id in some]
    assert sorted(taken) == sorted(ids)


def test_after_a_death_another_goes_on_and_the_dead_ones_writes_are_refused(ledger):
    ledger.jobs.add(job())
    dead = ledger.jobs.claim("dead")
    ledger.jobs.keep_step(dead, "sent", {"uids": ["1.2"]})
    assert ledger.jobs.claim("other") is None
    lapse(ledger)
    alive = ledger.jobs.claim("other")
    assert (alive.token, alive.attempts, alive.steps) == (2, 2, {"sent": {"uids": ["1.2"]}})
    for write in (
        lambda: ledger.jobs.end(dead, state="done"),
        lambda: ledger.jobs.retry(dead, reason="x", detail=""),
        lambda: ledger.jobs.renew(dead, stage="s", percent=1),
        lambda: ledger.jobs.keep_step(dead, "late", {}),
    ):
        with pytest.raises(LeaseLost):
            write()
    ledger.jobs.end(alive, state="done")
    assert ledger.jobs.get(alive.job_id).state == "done"
    assert ledger.jobs.claim("third") is None


def test_a_renewed_lease_does_not_lapse(ledger):
    ledger.jobs.add(job())
    lease = ledger.jobs.claim("w")
    lapse(ledger)
    ledger.jobs.renew(lease, stage="encode", percent=40)
    assert ledger.jobs.claim("other") is None
    view = ledger.jobs.get(lease.job_id)
    assert (view.state, view.stage, view.percent) == ("running", "encode", 40)


def test_failures_are_retried_then_given_up_with_the_reason_and_can_be_replayed(ledger):
    job_id = ledger.jobs.add(job(max_attempts=2))
    for expected in ("waiting", "dead"):
        ledger.jobs.retry(ledger.jobs.claim("w"), reason="model-timeout", detail="took too long")
        assert (ledger.jobs.get(job_id).state, ledger.jobs.get(job_id).reason) == (expected, "model-timeout")
    assert ledger.jobs.claim("w") is None
    ledger.jobs.replay(job_id)
    assert ledger.jobs.claim("w").attempts == 1


def test_a_job_that_kills_its_workers_is_given_up(ledger):
    job_id = ledger.jobs.add(job(max_attempts=2))
    for _ in range(2):
        assert ledger.jobs.claim("w")
        lapse(ledger)
    assert ledger.jobs.claim("w") is None
    assert (ledger.jobs.get(job_id).state, ledger.jobs.get(job_id).reason) == ("dead", "worker-lost")


def test_back_off_grows_and_a_waiting_one_does_not_hold_up_the_next(ledger, monkeypatch):
    monkeypatch.setattr(jobs_module, "BACKOFF_S", (60.0,))
    bad = ledger.jobs.add(job("bad"))
    good = ledger.jobs.add(job("good"))
    first = ledger.jobs.claim("w")
    assert first.job_id == bad
    ledger.jobs.retry(first, reason="model-not-ready", detail="")
    assert ledger.jobs.claim("w").job_id == good


def test_a_closed_lane_is_passed_by(ledger):
    ledger.jobs.add(job("held", lane="pacs"))
    free = ledger.jobs.add(job("free", lane="archive"))
    assert ledger.jobs.claim("w", closed_lanes=["pacs"]).job_id == free
    assert ledger.jobs.claim("w", closed_lanes=["pacs"]) is None


def test_cancelling_ends_a_waiting_job_now_and_a_running_one_at_its_next_sign_of_life(ledger):
    waiting, running = (
        ledger.jobs.add(job("later", priority=Priority.ROUTINE)),
        ledger.jobs.add(job("now", priority=Priority.URGENT)),
    )
    lease = ledger.jobs.claim("w")
    ledger.jobs.cancel(waiting)
    ledger.jobs.cancel(running)
    assert ledger.jobs.get(waiting).state == "cancelled"
    with pytest.raises(LeaseLost):
        ledger.jobs.renew(lease, stage="encode", percent=1)
    ledger.jobs.acknowledge_cancel(lease)
    assert ledger.jobs.get(running).state == "cancelled"


def test_a_worker_that_is_told_to_stop_gives_its_job_back_without_an_attempt(ledger):
    ledger.jobs.add(job())
    ledger.jobs.release(ledger.jobs.claim("w"))
    assert ledger.jobs.claim("other").attempts == 1


def test_only_failed_jobs_can_be_replayed(ledger):
    job_id = ledger.jobs.add(job())
    with pytest.raises(JobNotReplayable, match="waiting"):
        ledger.jobs.replay(job_id)
    with pytest.raises(UnknownJob):
        ledger.jobs.replay("no-such-job")


def test_a_circuit_opens_after_three_failures_and_a_success_closes_it(ledger):
    for _ in range(2):
        ledger.circuits.note_failure("pacs")
    assert ledger.circuits.open_destinations() == []
    ledger.circuits.note_failure("pacs")
    assert ledger.circuits.open_destinations() == ["pacs"]
    ledger.circuits.note_success("pacs")
    assert ledger.circuits.states() == []
