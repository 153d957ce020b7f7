"""Requests: what a person asks of a search, as files that its daemon reads.

    requests/<time>-<random>.json   written whole or not at all; gone once it is answered

A request waits for as long as no daemon runs. Its answer stands in the database, under the same id.
Whatever else lies in that folder, or is no request, is read with care and told of without a word of
what it holds.
"""

import errno
import os
import pwd
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from nasd.contract import readable
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Message, write
from nasd.contract.strangers import content

LARGEST = 1 << 18  # bytes of a request: a genotype of hundreds of blocks
LONGEST_WHY = 1000
Action = Literal["pause", "drain", "resume", "stop", "budget", "retry", "cut", "inject", "regret"]


class Request(Message):
    """What is asked, and by whom. at: seconds since the epoch. why: in the asker's words.

    gpu_hours: the budget to set, None for no limit. candidate: to retry or to cut.
    genotype: to inject. sample: of how many of those who were cut the regret is to be known.
    """

    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,99}$")]
    action: Action
    who: Annotated[str, Field(max_length=200)]
    at: Annotated[float, Field(allow_inf_nan=False)]
    why: Annotated[str, Field(max_length=LONGEST_WHY)] = ""
    gpu_hours: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    candidate: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    genotype: dict[str, Any] | None = None
    sample: Annotated[int, Field(ge=1, le=10**6)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for text in (self.who, self.why):
            if not text.isprintable():
                raise ValueError("who and why are one line of plain text each")
        if (self.candidate is not None) != (self.action in ("retry", "cut")):
            raise ValueError("candidate belongs to retry and cut")
        if (self.genotype is not None) != (self.action == "inject"):
            raise ValueError("genotype belongs to inject")
        if self.sample is not None and self.action != "regret":
            raise ValueError("sample belongs to regret")
        return self

    @property
    def by(self) -> str:
        """Who asks, and why."""
        return f"by {self.who}: {self.why}" if self.why else f"by {self.who}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What it takes beside the action."""
        if self.action == "budget":
            return {"gpu_hours": self.gpu_hours}
        return self.model_dump(include={"candidate", "genotype", "sample"}, exclude_none=True)


def new(action: Action, why: str = "", **arguments: Any) -> Request:
    """A request of whoever runs this process."""
    now = datetime.now(UTC)
    return Request(
        id=f"{now:%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}",  # in order of time
        action=action,
        who=who(),
        at=now.timestamp(),
        why=_line(why)[:LONGEST_WHY],
        **arguments,
    )


def _line(text: str) -> str:
    """As one line of plain text: what a terminal would act on, or cannot show, is left out."""
    return "".join(one for one in " ".join(text.split()) if one.isprintable())


def who() -> str:
    """The login name; through sudo, whose it was before."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    before = os.environ.get("SUDO_USER", "")
    return _line(f"{before} as {name}" if before and before != name else name)[:200]


def place(folder: Path, request: Request) -> Path:
    """Where the request lies, in the requests' folder."""
    return folder / f"{request.id}.json"


def file(folder: Path, request: Request) -> Path:
    """Puts a request where the daemon finds it; raises NasdError if it cannot."""
    path = place(folder, request)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(request, path)
    except OSError as error:
        another = error.errno in (errno.EACCES, errno.EPERM) and _owner(folder) != os.geteuid()
        then = "ask as the user who runs nasd" if another else "mend that, and ask again"
        raise NasdError(f"{folder} cannot be written ({error.strerror}): {then}") from error
    return path


def _owner(folder: Path) -> int:
    """The user whose the folder is, or the first above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists()).stat().st_uid


def waiting(folder: Path) -> list[Path]:
    """The requests that are not answered yet, or not removed yet, the oldest first."""
    try:
        with os.scandir(folder) as found:
            names = [one.name for one in found]
    except (FileNotFoundError, NotADirectoryError):  # who asks is told so
        return []
    return [folder / one for one in sorted(names) if one.endswith(".json") and one[0] != "."]


def named(path: Path) -> str:
    """The id that the name of a file gives it, whether it is a request or not."""
    return readable.named(path.stem, 100)


def load(path: Path) -> Request:
    """Raises NasdError, which tells nothing of what the file holds, if it is no request."""
    try:
        request = Request.model_validate_json(content(path, LARGEST))
    except ValidationError:
        raise NasdError(f"{readable.named(path.name)} is damaged, or no request") from None
    if request.id != path.stem:
        raise NasdError(
            f"{readable.named(path.name)} is damaged: it holds a request of another name"
        )
    return request
