"""`torchrun -m nasd.worker ATTEMPT_FOLDER`: one rank of one attempt."""

import os
import sys
import traceback
from pathlib import Path

from nasd.errors import NasdError
from nasd.leash import die_with_parent
from nasd.protocol import EXIT_DONE, EXIT_NO_OUTCOME, AttemptFolder, Outcome, Spec, read, write


def main() -> int:
    die_with_parent(os.getppid())
    folder = AttemptFolder(Path(sys.argv[1]))
    spec = read(Spec, folder.spec)
    first = os.environ["RANK"] == "0"

    import torch.distributed as dist

    from nasd.worker import stage
    from nasd.worker.train import StopRequest

    stop = StopRequest()
    try:
        ranks = stage.join(spec)
        outcome = stage.run(spec, folder, ranks, stop)
    except NasdError as error:
        print(f"error: {error}", flush=True)
        outcome, first = Outcome(verdict="error", message=str(error)), True
    except Exception as error:
        traceback.print_exc()
        if _peer_is_gone(error):
            # Whatever took the peer has the verdict: its own outcome, or none if it was killed.
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


if __name__ == "__main__":
    sys.exit(main())
