"""vmfork for programs with an event loop: the names of `vmfork`, awaitable.

Nothing is imported until it is used: importing this module costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.late import late_names

if TYPE_CHECKING:
    from vmfork.agent.process import GuestProcess
    from vmfork.agent.tunnel import GuestConnection
    from vmfork.agent.watch import Watch
    from vmfork.api.checkpoint import Checkpoint
    from vmfork.api.image import Image
    from vmfork.api.template import Template
    from vmfork.api.vm import VM
    from vmfork.cluster.cluster import Cluster
    from vmfork.cluster.vm import ClusterVM
    from vmfork.code.result import CodeFailure, CodeOutput, CodeResult
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
    from vmfork.factory import Factory
    from vmfork.machine.event import ProgramEvent
    from vmfork.machine.handle import VMHandle
    from vmfork.machine.result import ExecResult
    from vmfork.machine.trace import detailed_timings
    from vmfork.network.decision import Decision, NetworkCounts
    from vmfork.network.forward import Forward
    from vmfork.network.neighbours import Network
    from vmfork.network.policy import Allow
    from vmfork.network.reverse import Reverse
    from vmfork.template.probes import Probe
    from vmfork.template.recipe import Recipe
    from vmfork.travel.saved import Saved
    from vmfork.wire.event import FileEvent

_ERRORS = (
    "AdoptError", "ArtifactError", "Closed", "ClusterError", "CodeError", "ConfigError", "DeadlineExceeded",
    "ExecError",
    "FallbackRefused", "FitError", "GuestError", "GuestFileError",
    "HookError", "HostError", "ImageCorrupt", "ImageError", "ImageExists", "ImageInUse", "ImageNotFound",
    "InternalError", "LaunchError", "LimitExceeded", "MachineEnded", "NoNode", "NoRoom", "NodeLost", "NodeRefused",
    "NotOwner", "PortError", "ProtocolError",
    "RolledBack", "SecretsPresent", "SetupError", "StoreBusy", "TemplateCorrupt",
    "TemplateElsewhere", "TemplateError", "TemplateExists", "TemplateNotFound", "TemplateStale",
    "TemplateUnfit", "VMExists",
    "VMForkError", "VMNotFound", "WrongContext",
)  # fmt: skip

_HOMES = {
    "Checkpoint": "vmfork.api.checkpoint",
    "Image": "vmfork.api.image",
    "VM": "vmfork.api.vm",
    "Template": "vmfork.api.template",
    "Factory": "vmfork.factory",
    "Cluster": "vmfork.cluster.cluster",
    "ClusterVM": "vmfork.cluster.vm",
    "GuestConnection": "vmfork.agent.tunnel",
    "GuestProcess": "vmfork.agent.process",
    "Watch": "vmfork.agent.watch",
    "FileEvent": "vmfork.wire.event",
    **dict.fromkeys(
        ("FactoryConfig", "ImageConfig", "ProgramLimits", "Places", "VMConfig", "find_places"), "vmfork.config"
    ),
    "load_settings": "vmfork.config.loader",
    **dict.fromkeys(_ERRORS, "vmfork.errors"),
    **dict.fromkeys(("CodeFailure", "CodeOutput", "CodeResult"), "vmfork.code.result"),
    "ExecResult": "vmfork.machine.result",
    "ProgramEvent": "vmfork.machine.event",
    "VMHandle": "vmfork.machine.handle",
    "Probe": "vmfork.template.probes",
    "Recipe": "vmfork.template.recipe",
    "Saved": "vmfork.travel.saved",
    "Allow": "vmfork.network.policy",
    **dict.fromkeys(("Decision", "NetworkCounts"), "vmfork.network.decision"),
    "Forward": "vmfork.network.forward",
    "Network": "vmfork.network.neighbours",
    "Reverse": "vmfork.network.reverse",
    "detailed_timings": "vmfork.machine.trace",
}

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
    "detailed_timings",
    "find_places",
    "load_settings",
]


__getattr__ = late_names(__name__, _HOMES)
