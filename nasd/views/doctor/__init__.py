"""Whether this machine can carry a search through: what `nasd doctor` looks at, and what it says.

Each check is one function of a `Case` that yields what it found; none of them changes anything but
the lock file, which a daemon would write as well. `machine`, `sources`, `search` and `service` hold
them; `examination` calls them in their order.
"""

from nasd.views.doctor.case import Finding
from nasd.views.doctor.examination import examine
from nasd.views.doctor.verdict import ready, render, to_json, verdict

__all__ = ["Finding", "examine", "ready", "render", "to_json", "verdict"]
