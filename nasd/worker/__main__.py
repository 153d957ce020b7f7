"""`torchrun -m nasd.worker ATTEMPT_FOLDER`: one rank of one attempt."""

import errno
import os
import sys
import traceback
from pathlib import Path

from nasd.errors import NasdError
from nasd.leash import die_with_parent
from nasd.protocol import EXIT_DONE, EXIT_NO_OUTCOME, AttemptFolder, Outcome, Spec, read, write
from nasd.worker.stop import StopRequest


def main() -> int:
    die_with_parent(os.getppid())
    stop = StopRequest()  # before torch is imported: that takes seconds
    folder = AttemptFolder(Path(sys.argv[1]))
    spec = read(Spec, folder.spec)
    first = os.environ["RANK"] == "0"

    import torch.distributed as dist

    from nasd.worker import stage

    try:
        ranks = stage.join(spec)
        outcome = stage.run(spec, folder, ranks, stop)
    except NasdError as error:
        print(f"error: {error}", flush=True)
        outcome, first = Outcome(verdict="error", message=str(error)), True
    except Exception as error:
        traceback.print_exc()
        if _peer_is_gone(error) or _machine_failed(error):
            # No fault of the candidate's, so no verdict on it: the attempt counts as lost. Where
            # a peer is gone, what took it may have left its own.
            os._exit(EXIT_NO_OUTCOME)
        message = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        outcome, first = Outcome(verdict="error", message=message), True
    # Whichever rank fails has the verdict: its peers may never come back from waiting for it.
    if outcome.verdict == "out_of_memory":
        first = True
    if first and not folder.outcome.exists():
        write(outcome, folder.outcome)
    if outcome.verdict in ("error", "out_of_memory"):
        os._exit(EXIT_NO_OUTCOME)  # without waiting for peers in a collective
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return EXIT_DONE


def _peer_is_gone(error: Exception) -> bool:
    import torch.distributed as dist

    # gloo raises a bare RuntimeError with its own source's path in it.
    return isinstance(error, dist.DistError) or "gloo" in str(error)


FULL_OR_BROKEN_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}
OF_THE_MACHINE = (
    "CUDA error", "No CUDA GPUs", "CUDA driver", "NCCL error",
    "No space left", "PytorchStreamWriter failed", "unexpected pos",  # torch.save, a full disk
)  # fmt: skip


def _machine_failed(error: Exception) -> bool:
    """Whether the machine is at fault: a lost GPU, a full disk, no memory on the host.

    What a kernel does wrong by itself (an index out of bounds) is not.
    """
    import torch

    text = str(error)
    if "device-side assert" in text or "illegal memory access" in text:
        return False
    if isinstance(error, OSError):
        return error.errno in FULL_OR_BROKEN_DISK
    # An out-of-memory of the model's is a verdict of its own; this one came before the model.
    kinds = (torch.AcceleratorError, torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(part in text for part in OF_THE_MACHINE)


if __name__ == "__main__":
    sys.exit(main())
