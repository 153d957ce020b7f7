"""A local metric for `evaluate.load`, which asks for a folder and a script of the same name."""
