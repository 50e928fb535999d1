"""Pointsman: a transparent router for LLM traffic."""

# As in pyproject.toml; a test compares them. A checkout, which is not installed, knows it too.
__version__ = "0.1.0"
