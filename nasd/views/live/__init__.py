"""The live page: what a search is doing, in a browser."""
