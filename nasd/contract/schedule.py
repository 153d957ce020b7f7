"""The arithmetic of steps: what trains and what foretells it count by the same rules."""

import math
from dataclasses import dataclass

from nasd.contract.config import Stage

EVALUATION_BATCH = 32  # examples a rank, unless memory ran out


@dataclass(frozen=True)
class Schedule:
    """How many steps, and the learning rate at each: linear warm-up, then linear to zero.

    Of a part of a stage, `steps` are its own, counted from its beginning; `before` lie before it,
    and `whole` is how many the stage has: epochs and the learning rate are the stage's. Where it is
    several trainings (stages.soup), one of them has `each`.
    """

    examples: int
    batch: int
    steps_per_epoch: int
    steps: int
    warmup: int
    peak: float
    before: int
    whole: int
    each: int

    @classmethod
    def of(cls, stage: Stage, examples: int) -> "Schedule":
        assert stage.epochs is not None and stage.learning_rate is not None
        batch = min(stage.batch, examples)
        per_epoch = examples // batch  # the last, smaller batch of an epoch is left out
        each = max(1, round(stage.epochs * per_epoch))
        whole = stage.soup * each
        before, end = (round(share * whole) for share in stage.span)
        return cls(
            examples,
            batch,
            per_epoch,
            end - before,
            round(stage.warmup * each),
            stage.learning_rate,
            before,
            whole,
            each,
        )

    def learning_rate(self, step: int) -> float:
        at = (self.before + step) % self.each
        if at < self.warmup:
            return self.peak * (at + 1) / (self.warmup + 1)
        return self.peak * (self.each - at) / max(1, self.each - self.warmup)

    def begins_again_after(self, done: int) -> bool:
        """Whether another training from the same start follows so many steps."""
        return 0 < done < self.steps and (self.before + done) % self.each == 0

    def epoch_ends_after(self, done: int) -> bool:
        """Whether so many steps end an epoch."""
        return (self.before + done) % self.steps_per_epoch == 0

    def evaluates_after(self, step: int, per_epoch: int) -> bool:
        """Whether an evaluation follows `step`: `per_epoch` times an epoch, and at the end, of each
        training where there are several."""
        at = (self.before + step) % self.each
        if step + 1 == self.steps or at + 1 == self.each:
            return True
        share = self._share(per_epoch)
        return int((at + 1) / share) > int(at / share)

    def evaluation_steps(self, per_epoch: int) -> tuple[int, ...]:
        """After how many steps that is so, in order, without a look at each of them; at the least
        at the end."""
        found = (step - self.before for step in self._evaluations(per_epoch))
        return tuple(sorted({*(step for step in found if 0 < step <= self.steps), self.steps}))

    def _evaluations(self, per_epoch: int) -> list[int]:
        """After how many steps of the whole stage, up to the end of this part of it."""
        share, end = self._share(per_epoch), min(self.before + self.steps, self.each)
        found = []
        for number in range(1, int(end / share) + 1):
            step = math.ceil(number * share)
            while int(step / share) < number:  # where a float is off by its last bit
                step += 1
            while int((step - 1) / share) >= number:
                step -= 1
            found.append(step)
        begins = range(0, self.whole, self.each)
        return [begin + step for begin in begins for step in (*found, self.each)]

    def _share(self, per_epoch: int) -> float:
        """Steps between two evaluations."""
        return self.steps_per_epoch / min(per_epoch, self.steps_per_epoch)


def share_of(stage: Stage, world: int) -> int:
    """How many examples a rank takes at once where nothing is tried: its share of the batch, or
    what the stage says, if that is less."""
    share = -(-stage.batch // world)
    return min(stage.micro_batch or share, share)


def smallest(stage: Stage | None, world: int, halvings: int) -> bool:
    """Whether nothing is worked on at a time that could still be halved. stage: None of a
    screening."""
    share = 1 if stage is None or stage.train == "none" else share_of(stage, world)
    return halved(max(EVALUATION_BATCH, share), halvings) == 1


def halved(size: int, times: int) -> int:
    """`size` halved so many times, never below 1."""
    return max(1, size >> times)
