"""Syne Tune's MOASHA (Schmucker et al. 2021) on recorded curves, beside our rules: the same
candidates in the same order, on as many slots, each stopped or trained on at every evaluation.

As released (0.16.0), its priority gives the order of candidates where the rank of each is asked for
(`NonDominatedPriority` of [[3, 3], [1, 1], [2, 2]] is [1, 2, 0], and the ranks are [2, 0, 1]), so
who is stopped has little to do with who is dominated. `Mended` gives the ranks, by Syne Tune's own
functions, and is the peer to be held against.

Of Syne Tune nothing but this scheduler is needed, which imports none of the large packages that it
depends on: bin/bench installs it without them.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from syne_tune.backend.trial_status import Trial
from syne_tune.optimizer.scheduler import SchedulerDecision
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA
from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import (
    MOPriority,
    NonDominatedPriority,
)
from syne_tune.optimizer.schedulers.multiobjective.non_dominated_priority import (
    compute_epsilon_net,
    pareto_efficient,
)

from tests.bench.replayed import SLOTS, Known, Run

GRACE, FACTOR = 1 / 8, 2  # rungs at 1/8, 1/4 and 1/2, half of what comes to each goes on


class Mended(MOPriority):
    def priority_unsafe(self, objectives: Any) -> Any:
        places = np.empty(len(objectives), dtype=int)
        left, done = np.arange(len(objectives)), 0
        while left.size:
            front = pareto_efficient(objectives[left])
            places[left[front]] = done + compute_epsilon_net(objectives[left[front]], dim=0)
            done, left = done + int(front.sum()), left[~front]
        return places


PRIORITIES = {"MOASHA as released": NonDominatedPriority, "MOASHA, mended": Mended}


@dataclass
class Peer(Run):
    """One generation under MOASHA. first: the order of starts."""

    pool: Mapping[int, Known]
    first: Sequence[int]
    priority: MOPriority
    ended: list[tuple[float, int]] = field(default_factory=list)
    cut: set[int] = field(default_factory=set)
    busy: float = 0.0
    now: float = 0.0

    def run(self) -> "Peer":
        looks = len(next(iter(self.pool.values())).curve)
        scheduler = MOASHA(
            {},
            ["loss", "size"],
            time_attr="look",
            max_t=looks,
            grace_period=round(GRACE * looks),
            reduction_factor=FACTOR,
            multiobjective_priority=self.priority,
        )
        trials = {one: Trial(one, {}, datetime.now()) for one in self.pool}
        pending, running = [*self.first], list[tuple[float, int, int]]()
        while pending or running:
            while pending and len(running) < SLOTS:
                one = pending.pop(0)
                scheduler.on_trial_add(trials[one])
                heapq.heappush(running, (self.now + self.pool[one].seconds / looks, one, 1))
            self.now, one, look = heapq.heappop(running)
            known = self.pool[one]
            self.busy += known.seconds / looks
            said = {"look": look, "loss": known.curve[look - 1][1], "size": 1 / known.compression}
            asked = scheduler.on_trial_result(trials[one], said)
            if look == looks:
                self.ended.append((self.busy, one))
            elif asked == SchedulerDecision.STOP:
                self.cut.add(one)
            else:
                heapq.heappush(running, (self.now + known.seconds / looks, one, look + 1))
        return self
