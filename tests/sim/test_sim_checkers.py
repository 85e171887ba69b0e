"""One planted bug per judge: each law of the simulator is really watched over."""

from __future__ import annotations

import pytest
import sim_planted as planted

from kestrel.errors import InternalError
from kestrel.sim.faults import Fault
from kestrel.sim.hosts import Shells
from kestrel.sim.laws import BrokenLawError
from kestrel.sim.world import World, WorldSettings, play, run_seed

SEEDS = range(1, 41)
SHORT = WorldSettings(liveness_s=120.0, steps_max=30_000)


def problems(shells: Shells) -> list[Exception]:
    """What the judges say of these shells, seed by seed, until one says something."""
    for seed in SEEDS:
        outcome = run_seed(seed, SHORT, shells)
        if outcome.problem is not None:
            return [outcome.problem]
    return []


@pytest.mark.parametrize(
    ("law", "shells"),
    [
        ("told_before_stored", Shells(manager=planted.TellsBeforeStoring)),
        ("ack_before_stored", Shells(manager=planted.AcknowledgesAtOnce)),
        ("recorded_twice", Shells(manager=planted.RecordsTwice)),
        ("task_lost", Shells(manager=planted.DropsATask)),
        ("seen_once", Shells(manager=planted.SkipsAResult)),
        ("submission_doubled", Shells(manager=planted.ForgetsSubmissions, port=planted.LosesSubmissionIds)),
        ("restarted", Shells(manager=planted.IgnoresRestartNever)),
        ("unbounded", Shells(manager=planted.LetsRepeatsWait)),
        ("wish_ignored", Shells(manager=planted.IgnoresNames)),
        ("wish_ignored", Shells(manager=planted.IgnoresOwners)),
        ("books_differ", Shells(manager=planted.ForgetsReturnedWorkers)),
        ("complaint", Shells(manager=planted.RefusesWatchers)),
        ("rebuilt_differs", Shells(port=planted.LosesTroubles)),
        ("job_unended", Shells(agent=planted.DropsAssignments)),
        ("result_without_run", Shells(agent=planted.InventsResults)),
        ("attempt_ran_twice", Shells(agent=planted.RunsAgain)),
        ("report_numbers", Shells(agent=planted.ReusesReportNumbers)),
        ("not_spooled", Shells(agent=planted.KeepsNothing)),
        ("unsettled", Shells(agent=planted.NeverForgets)),
        ("storm", Shells(agent=planted.PingsForEver)),
    ],
)
def test_a_broken_law_is_seen(law: str, shells: Shells) -> None:
    found = problems(shells)
    assert [p.law if isinstance(p, BrokenLawError) else repr(p) for p in found] == [law]


@pytest.mark.parametrize(
    ("law", "shells", "faults", "standbys"),
    [
        ("fenced_write", Shells(port=planted.KnowsNoFence), [Fault.STORE_CUT], 1),
        ("lapsed_tells", Shells(manager=planted.IgnoresItsLapse), [Fault.STORE_CUT], 0),
        ("two_voices", Shells(leadership=planted.TakesAtOnce), [], 1),
        ("attempt_reused", Shells(manager=planted.BeginsAgainAtOne), [Fault.MANAGER_CRASH], -1),
        ("drained_given", Shells(manager=planted.SaysDrained), [Fault.DRAIN], -1),
        ("counted_twice", Shells(port=planted.CountsTwice), [], -1),
        ("failed_early", Shells(manager=planted.NeverTriesAgain), [], -1),
        ("unsettled", Shells(manager=planted.IgnoresQuestions), [], -1),
        ("rebuilt_differs", Shells(port=planted.LosesDrains), [Fault.DRAIN], -1),
        ("rebuilt_differs", Shells(port=planted.LosesWorkers), [], -1),
    ],
)
def test_a_law_about_managers_that_follow_each_other_is_seen_to_break(
    law: str, shells: Shells, faults: list[Fault], standbys: int
) -> None:
    kinds = dict.fromkeys(faults, 5.0)
    for seed in SEEDS:
        world = World(seed, SHORT, shells, faults=(kinds, frozenset()), standbys=standbys)
        problem = play(world).problem
        if problem is not None:
            break
    assert problem is not None, "nobody has noticed anything"
    assert (problem.law if isinstance(problem, BrokenLawError) else repr(problem)) == law


@pytest.mark.parametrize(
    ("says", "shells"),
    [
        ("slots as busy", Shells(manager=planted.MiscountsSlots)),
        ("busy slots miscounted", Shells(agent=planted.MiscountsBusySlots)),
    ],
)
def test_a_broken_invariant_of_a_machine_is_seen(says: str, shells: Shells) -> None:
    (problem,) = problems(shells)
    assert isinstance(problem, InternalError)
    assert says in problem.text
