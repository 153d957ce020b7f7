"""nasd: a daemon that searches transformer encoder architectures on your own GPUs."""

__version__ = "0.1.0"
