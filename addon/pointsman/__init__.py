"""Pointsman: a transparent router for LLM traffic."""
