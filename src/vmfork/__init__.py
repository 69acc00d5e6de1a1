"""Boot a virtual machine once, then fork ready machines from it in about a tenth of a second.

`vmfork.X` blocks, `vmfork.aio.X` awaits, with the same names. Nothing is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.late import late_names

if TYPE_CHECKING:
    from vmfork import aio
    from vmfork.blocking import (
        VM,
        Checkpoint,
        Cluster,
        ClusterVM,
        Factory,
        Forward,
        GuestConnection,
        GuestProcess,
        Image,
        Reverse,
        Template,
        Watch,
    )
    from vmfork.config import FactoryConfig, ImageConfig, Places, ProgramLimits, VMConfig, find_places
    from vmfork.config.loader import load_settings
    from vmfork.errors import (
        AdoptError,
        ArtifactError,
        Closed,
        ClusterError,
        CodeError,
        ConfigError,
        DeadlineExceeded,
        ExecError,
        FallbackRefused,
        FitError,
        GuestError,
        GuestFileError,
        HookError,
        HostError,
        ImageCorrupt,
        ImageError,
        ImageExists,
        ImageInUse,
        ImageNotFound,
        InternalError,
        LaunchError,
        LimitExceeded,
        MachineEnded,
        NodeLost,
        NodeRefused,
        NoNode,
        NoRoom,
        NotOwner,
        PortError,
        ProtocolError,
        RolledBack,
        SecretsPresent,
        SetupError,
        StoreBusy,
        TemplateCorrupt,
        TemplateElsewhere,
        TemplateError,
        TemplateExists,
        TemplateNotFound,
        TemplateStale,
        TemplateUnfit,
        VMExists,
        VMForkError,
        VMNotFound,
        WrongContext,
    )
    from vmfork.machine.event import ProgramEvent
    from vmfork.machine.handle import VMHandle
    from vmfork.machine.result import ExecResult
    from vmfork.machine.trace import detailed_timings
    from vmfork.network.decision import Decision, NetworkCounts
    from vmfork.network.neighbours import Network
    from vmfork.network.policy import Allow
    from vmfork.template.probes import Probe
    from vmfork.template.recipe import Recipe
    from vmfork.travel.saved import Saved
    from vmfork.wire.event import FileEvent

__version__ = "0.1.0"

# What waits has a blocking form here; values and errors are the same objects as in vmfork.aio.
_BLOCKING = (
    "VM",
    "Checkpoint",
    "Cluster",
    "ClusterVM",
    "Factory",
    "Forward",
    "GuestConnection",
    "GuestProcess",
    "Image",
    "Reverse",
    "Template",
    "Watch",
)

__all__ = [
    "VM",
    "AdoptError",
    "Allow",
    "ArtifactError",
    "Checkpoint",
    "Closed",
    "Cluster",
    "ClusterError",
    "ClusterVM",
    "CodeError",
    "CodeFailure",
    "CodeOutput",
    "CodeResult",
    "ConfigError",
    "DeadlineExceeded",
    "Decision",
    "ExecError",
    "ExecResult",
    "Factory",
    "FactoryConfig",
    "FallbackRefused",
    "FileEvent",
    "FitError",
    "Forward",
    "GuestConnection",
    "GuestError",
    "GuestFileError",
    "GuestProcess",
    "HookError",
    "HostError",
    "Image",
    "ImageConfig",
    "ImageCorrupt",
    "ImageError",
    "ImageExists",
    "ImageInUse",
    "ImageNotFound",
    "InternalError",
    "LaunchError",
    "LimitExceeded",
    "MachineEnded",
    "Network",
    "NetworkCounts",
    "NoNode",
    "NoRoom",
    "NodeLost",
    "NodeRefused",
    "NotOwner",
    "Places",
    "PortError",
    "Probe",
    "ProgramEvent",
    "ProgramLimits",
    "ProtocolError",
    "Recipe",
    "Reverse",
    "RolledBack",
    "Saved",
    "SecretsPresent",
    "SetupError",
    "StoreBusy",
    "Template",
    "TemplateCorrupt",
    "TemplateElsewhere",
    "TemplateError",
    "TemplateExists",
    "TemplateNotFound",
    "TemplateStale",
    "TemplateUnfit",
    "VMConfig",
    "VMExists",
    "VMForkError",
    "VMHandle",
    "VMNotFound",
    "Watch",
    "WrongContext",
    "aio",
    "detailed_timings",
    "find_places",
    "load_settings",
]


_HOMES = {
    **dict.fromkeys(__all__, "vmfork.aio"),
    **dict.fromkeys(_BLOCKING, "vmfork.blocking"),
}

__getattr__ = late_names(__name__, _HOMES)
