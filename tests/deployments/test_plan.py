"""What is done next, for every state a deployment can be found in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.deployments.plan import Action, Desired, Memory, Phase, Replica, ReplicaPhase, backoff, goal, next_action

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = timedelta(seconds=60)
WANTED = Desired(active=True, revision=2, replicas=2)


def at(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def replica(
    revision: int,
    phase: ReplicaPhase = ReplicaPhase.RUNNING,
    *,
    since: float = 30,
    restarts: int = 0,
    final: bool = False,
) -> Replica:
    return Replica(
        name=f"engine-{revision}", revision=revision, phase=phase, since=at(since), restarts=restarts, is_final=final
    )


def act(desired: Desired, memory: Memory, *observed: Replica) -> Action:
    return next_action(desired, observed, memory, NOW, PATIENCE)


STARTING = Memory(Phase.STARTING, at(5))
RUNNING = Memory(Phase.RUNNING, at(30), running_revision=2)
PENDING, FAILED, STOPPING = ReplicaPhase.PENDING, ReplicaPhase.FAILED, ReplicaPhase.STOPPING


def test_nothing_runs_of_what_was_asked_for() -> None:
    assert act(WANTED, STARTING) is Action.START


def test_half_of_the_replicas_are_missing() -> None:
    assert act(WANTED, STARTING, replica(2)) is Action.START


def test_replicas_that_come_up_are_waited_for() -> None:
    assert act(WANTED, STARTING, replica(2, PENDING), replica(2)) is Action.WAIT


def test_all_replicas_answer() -> None:
    assert act(WANTED, STARTING, replica(2), replica(2)) is Action.MARK_RUNNING


def test_a_deployment_at_rest_is_left_alone() -> None:
    assert act(WANTED, RUNNING, replica(2), replica(2)) is Action.WAIT


def test_the_former_revision_stays_until_the_new_one_answers() -> None:
    changing = Memory(Phase.STARTING, at(5), running_revision=1)

    assert act(WANTED, changing, replica(1), replica(2), replica(2, PENDING)) is Action.WAIT
    assert act(WANTED, changing, replica(1), replica(2), replica(2)) is Action.MARK_RUNNING


def test_the_former_revision_goes_when_every_gateway_has_heard_of_the_new_one() -> None:
    two = (replica(2), replica(2))

    assert act(WANTED, replace(RUNNING, since=at(0.2)), replica(1), *two) is Action.WAIT
    assert act(WANTED, RUNNING, replica(1), *two) is Action.RETIRE
    assert act(WANTED, RUNNING, replica(1, STOPPING), *two) is Action.WAIT


def test_a_replica_that_ends_is_replaced_at_once_and_then_more_slowly() -> None:
    assert act(WANTED, RUNNING, replica(2), replica(2, FAILED, since=0)) is Action.RESTART
    again = replace(RUNNING, phase=Phase.STARTING)
    assert act(WANTED, again, replica(2), replica(2, FAILED, since=0.5, restarts=1)) is Action.WAIT
    assert act(WANTED, again, replica(2), replica(2, FAILED, since=1.5, restarts=1)) is Action.RESTART
    assert [backoff(n).total_seconds() for n in (0, 1, 2, 3, 10, 10**6)] == [0, 1, 2, 4, 60, 60]


def test_a_replica_that_cannot_serve_fails_a_revision_that_never_ran() -> None:
    assert act(WANTED, STARTING, replica(2), replica(2, FAILED, final=True)) is Action.MARK_FAILED


def test_a_revision_that_never_ran_fails_after_a_few_attempts() -> None:
    assert act(WANTED, STARTING, replica(2), replica(2, FAILED, restarts=1)) is Action.RESTART
    assert act(WANTED, STARTING, replica(2), replica(2, FAILED, restarts=2)) is Action.MARK_FAILED


def test_a_revision_that_ran_is_never_given_up() -> None:
    crashing = Memory(Phase.STARTING, at(10_000), running_revision=2)

    assert act(WANTED, crashing, replica(2), replica(2, FAILED, since=100, restarts=50)) is Action.RESTART


def test_the_start_has_a_deadline() -> None:
    assert act(WANTED, replace(STARTING, since=at(61)), replica(2, PENDING), replica(2)) is Action.MARK_FAILED


def test_a_failed_revision_is_stopped_and_left_alone_until_somebody_changes_something() -> None:
    failed = Memory(Phase.FAILED, at(5), failed_revision=2)

    assert act(WANTED, failed, replica(2, FAILED), replica(2)) is Action.STOP
    assert act(WANTED, failed, replica(2, STOPPING)) is Action.WAIT
    assert act(WANTED, failed) is Action.WAIT
    assert act(Desired(True, 3, 1), replace(failed, phase=Phase.STARTING)) is Action.START


def test_what_ran_before_goes_on_when_the_new_revision_fails() -> None:
    fallen_back = Memory(Phase.FAILED, at(5), running_revision=1, failed_revision=2)

    assert act(WANTED, fallen_back, replica(1), replica(2, FAILED)) is Action.RETIRE
    assert act(WANTED, fallen_back, replica(1)) is Action.WAIT
    assert act(WANTED, fallen_back, replica(1, FAILED)) is Action.RESTART
    assert act(WANTED, fallen_back) is Action.WAIT


def test_an_undeployed_one_is_stopped_then_at_rest() -> None:
    off = Desired(False, 2, 2)
    stopping = Memory(Phase.STOPPING, at(1), running_revision=2)

    assert act(off, stopping, replica(2), replica(2, STOPPING)) is Action.STOP
    assert act(off, stopping, replica(2, STOPPING)) is Action.WAIT
    assert act(off, stopping) is Action.MARK_STOPPED
    assert act(off, Memory(Phase.STOPPED, at(1))) is Action.WAIT


def test_no_replicas_asked_for_is_running_with_none() -> None:
    assert act(Desired(True, 2, 0), STARTING) is Action.MARK_RUNNING


@pytest.mark.parametrize("replicas", [0, 1, 3])
@settings(deadline=None)
@given(data=st.data())
def test_whatever_is_found_a_few_steps_lead_to_rest(replicas: int, data: st.DataObject) -> None:
    """Carry the steps out in a world where every start succeeds: it must come to rest with what was asked for."""
    phases = st.sampled_from([p for p in ReplicaPhase if p is not STOPPING])
    found = data.draw(st.lists(st.builds(replica, st.integers(1, 3), phases, restarts=st.integers(0, 5)), max_size=5))
    revisions = st.one_of(st.none(), st.integers(1, 2))
    memory = Memory(data.draw(st.sampled_from(Phase)), at(data.draw(st.integers(2, 50))), data.draw(revisions), None)
    desired = Desired(data.draw(st.booleans()), 2, replicas)
    world = list(found)
    now = NOW

    for _ in range(40):
        action = next_action(desired, tuple(world), memory, now, timedelta(days=1))
        now += timedelta(seconds=61)
        if action is Action.START:
            there = len([r for r in world if r.revision == 2])
            world += [replica(2)] * (desired.replicas - there)
        elif action is Action.RESTART:
            world = [replica(r.revision) if r.phase is FAILED else r for r in world]
        elif action is Action.RETIRE:
            world = [r for r in world if r.revision == goal(desired, memory)]
        elif action is Action.STOP:
            world = []
        elif action is Action.MARK_RUNNING:
            memory = Memory(Phase.RUNNING, now, 2)
        elif action is Action.MARK_STARTING:
            memory = replace(memory, phase=Phase.STARTING, since=now)
        elif action is Action.MARK_STOPPED:
            memory = Memory(Phase.STOPPED, now)
        elif action is Action.MARK_FAILED:
            memory = replace(memory, phase=Phase.FAILED, failed_revision=2)
        else:
            world = [msgspec.structs.replace(r, phase=ReplicaPhase.RUNNING) if r.phase is PENDING else r for r in world]

    if not desired.active:
        assert (world, memory.phase) == ([], Phase.STOPPED)
    elif memory.phase is Phase.FAILED:
        assert all(r.revision == memory.running_revision for r in world)
    else:
        assert memory.phase is Phase.RUNNING
        assert {r.revision for r in world} <= {2}
        assert len(world) >= replicas
        assert all(r.phase is ReplicaPhase.RUNNING for r in world)
