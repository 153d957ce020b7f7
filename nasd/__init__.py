"""nasd: a daemon that searches transformer encoder architectures on your own GPUs.

From Python: `from nasd import Search` (docs/python.md).
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Search", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Search":
        import importlib  # by name: nobody who imports nasd has to carry what stands above

        return importlib.import_module("nasd.api").Search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
