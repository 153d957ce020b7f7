"""The names of what a search can go by. The method's own room says what each is worth
(nasd.search.objectives, one file each); a config is checked without it."""

OBJECTIVES = (
    "quality",
    "compression",
    "flop",
    "bytes",
    "bytes_int8",
    "latency_ms",
    "peak_memory_mb",
    "energy_j",
)
LATENCY = "latency_ms"
MEASURED = ("latency_ms", "peak_memory_mb", "energy_j")  # on a device; the first is told before
DEFAULT = ("quality", "compression")  # the thesis's, and what a search means that names none
FEWEST, MOST = 2, 5  # of one search
