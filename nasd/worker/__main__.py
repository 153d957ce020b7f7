"""`python -m nasd.worker ATTEMPT_FOLDER`: one rank of one attempt, started by
`nasd.launch.ranks`."""

import contextlib
import errno
import os
import sys
import traceback
from pathlib import Path

from nasd.contract import digests, variables
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.leash import die_with_parent
from nasd.contract.protocol import (
    EXIT_DONE,
    EXIT_NO_OUTCOME,
    AttemptFolder,
    Outcome,
    Spec,
    Verdict,
    read,
    write,
)
from nasd.worker.training.stop import StopRequest

# Whichever rank comes to one of these has the verdict, and leaves at once: its peers may never come
# back from waiting for it.
ALONE = {
    Verdict.ERROR,
    Verdict.INVALID,
    Verdict.MACHINE,
    Verdict.OUT_OF_MEMORY,
    Verdict.STOPPED,
}


def main() -> int:
    die_with_parent(os.getppid())
    stop = StopRequest()  # before torch is imported: that takes seconds
    folder = AttemptFolder(Path(sys.argv[1]))
    try:
        spec = read(Spec, folder.spec)
        if not digests.holds(spec):
            raise Damaged(folder.spec, "is damaged (it is not what was written there)")
    except NasdError as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return EXIT_NO_OUTCOME

    import torch.distributed as dist

    try:
        outcome = _run(spec, folder, stop)
        alone = outcome.verdict in ALONE
        token = os.environ.get(variables.TOKEN, "")
        if (alone or os.environ["RANK"] == "0") and not _has_outcome(folder, token):
            outcome = outcome.model_copy(update={"token": token})
            write(digests.signed(outcome), folder.outcome)
    except Exception as error:
        _tell(error)
        os._exit(EXIT_NO_OUTCOME)
    if alone:
        os._exit(EXIT_DONE if outcome.verdict == Verdict.STOPPED else EXIT_NO_OUTCOME)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return EXIT_DONE


def _run(spec: Spec, folder: AttemptFolder, stop: StopRequest) -> Outcome:
    """What came of the attempt; raises what the machine does to a process: a lost GPU, a full disk.

    There is no verdict on that: the attempt counts as lost. Where a peer is gone, what took it may
    have left its own.
    """
    from nasd.worker import stage

    try:
        return stage.run(spec, folder, stage.join(spec), stop)
    except Exception as error:
        if not isinstance(error, Damaged) and (_peer_is_gone(error) or _machine_failed(error)):
            raise
        _tell(error)
        return _judged(error, spec)


def _judged(error: Exception, spec: Spec) -> Outcome:
    """The verdict on an error that is not the machine's doing to the process itself.

    A file that is missing, damaged or cannot be read is the machine's fault, and never the
    candidate's. Data that a person has to mend are the same when they are read again.
    """
    if isinstance(error, Damaged):
        return Outcome(verdict=Verdict.MACHINE, message=str(error))
    if isinstance(error, NasdError):
        of_data = spec.stage is None and not _may_pass(error)
        return Outcome(verdict=Verdict.INVALID if of_data else Verdict.ERROR, message=str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return Outcome(verdict=Verdict.MACHINE, message=f"{error.filename}: {error.strerror}"[:500])
    message = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    return Outcome(verdict=Verdict.ERROR, message=message)


def _may_pass(error: BaseException) -> bool:
    """Whether something other than what was read is behind it, as the network or a disk is, so that
    it may be another time."""
    cause = error.__cause__
    if cause is None:
        return False
    of_content = isinstance(cause, ValueError | LookupError | TypeError | EOFError)
    return not of_content or isinstance(cause, OSError) or _may_pass(cause)


def _has_outcome(folder: AttemptFolder, token: str) -> bool:
    """Whether a peer has left this attempt's outcome; a later verdict does not replace it."""
    try:
        return read(Outcome, folder.outcome).token == token
    except NasdError:
        return False


def _tell(error: Exception) -> None:
    with contextlib.suppress(OSError):  # the log may stand on the very disk that is full
        if isinstance(error, NasdError):
            print(f"error: {error}", flush=True)
        else:
            traceback.print_exception(error)


def _peer_is_gone(error: Exception) -> bool:
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    # gloo raises a bare RuntimeError with its own source's path in it.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and type(error) is RuntimeError and "gloo" in str(error)


FULL_OR_BROKEN_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE,
}  # fmt: skip
OF_THE_MACHINE = (
    *map(os.strerror, FULL_OR_BROKEN_DISK),  # safetensors has these words, and no number
    "PytorchStreamWriter failed", "unexpected pos",  # torch.save, a full disk
    "requested and",  # numpy likewise: so many bytes requested and so many written
    "CUDA error", "No CUDA GPUs", "CUDA driver", "NCCL error",
    "DefaultCPUAllocator",  # no memory on the host
)  # fmt: skip


def _machine_failed(error: BaseException) -> bool:
    """Whether the machine is at fault: a lost GPU, a full disk, no memory on the host.

    What a kernel does wrong by itself (an index out of bounds) is not.
    """
    import torch

    if error.__cause__ is not None and _machine_failed(error.__cause__):
        return True
    text = str(error)
    if "device-side assert" in text or "illegal memory access" in text:
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL_OR_BROKEN_DISK or error.errno == errno.ENOMEM
    # An out-of-memory of the model's is a verdict of its own; this one came before the model.
    kinds = (torch.AcceleratorError, torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(part in text for part in OF_THE_MACHINE)


if __name__ == "__main__":
    sys.exit(main())
