"""The sections of config.toml, each a frozen value that knows its own mistakes."""
