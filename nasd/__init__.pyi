from nasd.api import Search as Search

__version__: str
