"""Factories give VMs on request: direct boots them, template forks them, the outer one matches, adopts and counts."""

from vmfork.factory.factory import Factory
from vmfork.factory.stats import FactoryStats

__all__ = ["Factory", "FactoryStats"]
