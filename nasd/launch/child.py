"""A question to the worker plane: a child process answers it, which may import torch.

The question is one JSON object on the child's standard input, the answer one JSON object on the
last line of its standard output: {"error": one sentence} where the child refuses. It does not
outlive who asked.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from nasd.contract.errors import NasdError
from nasd.launch import home, interpreter

# For a child that works beside a search, on what lies on the disk: a GPU that somebody else is on
# gets no new attempts.
BESIDE_A_SEARCH = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


class NoAnswer(Exception):
    """The child ended without one; the message is its last word, or that its time was up."""


def ask(
    module: str,
    question: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> dict[str, Any]:
    """What `python -m MODULE` answers; raises NasdError where it refuses, or NoAnswer."""
    try:
        with ExitStack() as stack:
            lent = {}
            if not home.usable():  # one that nobody has lent a lasting one for
                lent["HOME"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="nasd-"))
            done = subprocess.run(
                [
                    *interpreter.command("nasd.contract.leash", str(os.getpid())),
                    *interpreter.command(module),
                ],
                input=json.dumps(question),
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                env=interpreter.environment({**lent, **(environment or {})}),
            )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"no answer within {timeout_seconds:g} s") from None
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise NoAnswer((done.stderr.strip().splitlines() or ["no word of why"])[-1])
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise NasdError(answer["error"])
    return answer
