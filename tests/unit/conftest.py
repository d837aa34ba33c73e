"""Fixtures of the unit tests."""

from fakes import world

__all__ = ["world"]
