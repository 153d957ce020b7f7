"""The machine as the daemon finds it: how full its disk is, and which GPUs to leave alone."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from nasd.contract.config import Config
from nasd.contract.slots import devices
from nasd.launch import gpus
from nasd.launch.gpus import Gpu
from nasd.policy import endings
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import QuarantineKind
from nasd.record.store import Store

log = logging.getLogger("nasd")

FAULTS = 2  # answers in a row that make a GPU count as lost: a driver may be slow for once
RECOVERY_SECONDS = 600.0  # for which a lost GPU has to answer before it is used again
LEAST_RESERVE = 5e7  # bytes for the database and the like, whatever daemon.disk_reserve_gb says
SPACE_AGAIN = 1.1  # times the reserve, so that the search does not stop and go at its edge
GB = 1e9


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


class MachineWatch:
    """Records what is to be left alone, and until when; it starts and ends nothing.

    owns: as of a launcher. clock, monotonic: as of a tick.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        state: StateFolder,
        slots: tuple[str, ...],
        owns: Callable[[int], bool | None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._state = state
        self._slots = slots
        self._devices = devices(slots)
        self._owns = owns
        self._clock = clock
        self._monotonic = monotonic
        self._asked_reserve = config.daemon.disk_reserve_gb * GB
        self._answer: Mapping[str, Gpu] = {}  # the last one about the GPUs
        self._faults: dict[str, int] = {}  # answers in a row that found a GPU at fault
        self._healthy_since: dict[str, float] = {}
        # Attempts up to this one put no GPU under suspicion: a person has started nasd since.
        self._trusts_after = max((one.id for one in store.in_play().attempts), default=0)

    def begin(self) -> None:
        """Once: a person has had a look."""
        for one in self._store.in_play().quarantine.values():
            if one.kind is QuarantineKind.SUSPECT or one.slot not in self._devices:
                self._store.release(one.slot, self._clock())

    def is_short(self, free: float) -> bool:
        """Whether so many bytes on the disk are too few for anything to run on."""
        return free < self._reserve

    def look(self, free: float, health: Mapping[str, Gpu] | None) -> None:
        """free: bytes on the disk. health: of the GPUs, by slot; None while it is not known."""
        self._look_at_disk(free)
        if health and health is not self._answer:  # a new one, each 30 s or so
            self._answer = health
            for device in self._devices:
                if device in health:
                    self._look_at_gpu(health[device])
        suspects = endings.suspects(self._store.in_play(), self._slots, self._trusts_after)
        for slot, reason in suspects.items():
            self._quarantine(slot, QuarantineKind.SUSPECT, reason)

    @property
    def _reserve(self) -> float:
        return max(LEAST_RESERVE, self._asked_reserve)

    def _look_at_disk(self, free: float) -> None:
        hold = self._store.in_play().experiment.hold
        if self.is_short(free) and not hold:
            asked = self._asked_reserve >= LEAST_RESERVE
            least = "daemon.disk_reserve_gb =" if asked else "the least of"
            reason = (
                f"{self._state.path} has {free / GB:.2f} GB left, less than {least}"
                f" {self._reserve / GB:g}: the search goes on by itself once"
                f" there are {self._reserve * SPACE_AGAIN / GB:.2f} GB"
            )
            self._store.hold(reason, self._clock())
            log.warning("on hold: %s", reason)
        elif hold and free >= self._reserve * SPACE_AGAIN:
            self._store.hold("", self._clock())
            log.info("there is space on the disk again: the search goes on")

    def _look_at_gpu(self, gpu: Gpu) -> None:
        snapshot = self._store.in_play()
        known = snapshot.quarantine.get(gpu.slot)
        if gpu.fault:
            self._healthy_since.pop(gpu.slot, None)
            self._faults[gpu.slot] = self._faults.get(gpu.slot, 0) + 1
            lost = known is not None and known.kind is QuarantineKind.LOST
            if self._faults[gpu.slot] >= FAULTS and not lost:
                # What runs goes on where only the driver is silent: its heartbeat tells.
                kind = QuarantineKind.LOST if gpu.asked else QuarantineKind.UNKNOWN
                self._quarantine(gpu.slot, kind, gpu.fault)
            return
        self._faults.pop(gpu.slot, None)
        since = self._healthy_since.setdefault(gpu.slot, self._monotonic())
        leased = gpu.slot in devices(snapshot.leases)
        foreign = gpus.foreign(gpu, self._owns, leased)
        recovered = known is not None and (
            known.kind in (QuarantineKind.FOREIGN, QuarantineKind.UNKNOWN)
            or (known.kind is QuarantineKind.LOST and self._monotonic() - since >= RECOVERY_SECONDS)
        )
        if foreign and (known is None or recovered):
            who = ", ".join(f"pid {one.pid}, {one.memory / GB:.1f} GB" for one in foreign)
            reason = f"in use by somebody else ({who})"
            self._quarantine(gpu.slot, QuarantineKind.FOREIGN, reason)
        elif recovered:
            self._store.release(gpu.slot, self._clock())
            log.info("%s is free to use again", gpu.slot)

    def _quarantine(self, slot: str, kind: QuarantineKind, reason: str) -> None:
        known = self._store.in_play().quarantine.get(slot)
        if known is None or known.kind is not kind:
            self._store.quarantine(slot, kind, reason, self._clock())
            log.warning("%s is left alone: %s", slot, reason)
