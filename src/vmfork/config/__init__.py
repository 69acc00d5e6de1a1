"""Frozen values, and the one loader that makes them from file, environment and arguments."""

from vmfork.config.instance import Budget, Instance
from vmfork.config.places import Places, find_places, layers_beside
from vmfork.config.program import ProgramLimits
from vmfork.config.values import (
    DEFAULT_IMAGE,
    NAME,
    Accelerator,
    CardChoice,
    FactoryConfig,
    ImageConfig,
    LeftPrograms,
    Limits,
    VMConfig,
    check_import_name,
    check_name,
)

__all__ = [
    "DEFAULT_IMAGE",
    "NAME",
    "Accelerator",
    "Budget",
    "CardChoice",
    "FactoryConfig",
    "ImageConfig",
    "Instance",
    "LeftPrograms",
    "Limits",
    "Places",
    "ProgramLimits",
    "VMConfig",
    "check_import_name",
    "check_name",
    "find_places",
    "layers_beside",
]
