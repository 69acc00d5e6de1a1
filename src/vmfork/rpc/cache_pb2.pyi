from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConfigReply(_message.Message):
    __slots__ = ("config_version", "config", "traits", "cpus", "memory_mib", "max_cpus", "max_memory_mib", "server_version", "hardware", "name", "fingerprint", "template", "warmed", "recipe", "others")
    class TraitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    TRAITS_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    MAX_CPUS_FIELD_NUMBER: _ClassVar[int]
    MAX_MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    WARMED_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    config_version: int
    config: bytes
    traits: _containers.ScalarMap[str, str]
    cpus: int
    memory_mib: int
    max_cpus: int
    max_memory_mib: int
    server_version: str
    hardware: bytes
    name: str
    fingerprint: str
    template: str
    warmed: bool
    recipe: str
    others: _containers.RepeatedCompositeFieldContainer[ConfigReply]
    def __init__(self, config_version: _Optional[int] = ..., config: _Optional[bytes] = ..., traits: _Optional[_Mapping[str, str]] = ..., cpus: _Optional[int] = ..., memory_mib: _Optional[int] = ..., max_cpus: _Optional[int] = ..., max_memory_mib: _Optional[int] = ..., server_version: _Optional[str] = ..., hardware: _Optional[bytes] = ..., name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., template: _Optional[str] = ..., warmed: _Optional[bool] = ..., recipe: _Optional[str] = ..., others: _Optional[_Iterable[_Union[ConfigReply, _Mapping]]] = ...) -> None: ...

class GetBaseVMRequest(_message.Message):
    __slots__ = ("ttl_s", "client", "fingerprint", "template")
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    ttl_s: float
    client: str
    fingerprint: str
    template: str
    def __init__(self, ttl_s: _Optional[float] = ..., client: _Optional[str] = ..., fingerprint: _Optional[str] = ..., template: _Optional[str] = ...) -> None: ...

class GetBaseVMReply(_message.Message):
    __slots__ = ("handle_version", "handle", "vm_id", "pid", "cpus", "memory_mib", "hit")
    HANDLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    HIT_FIELD_NUMBER: _ClassVar[int]
    handle_version: int
    handle: bytes
    vm_id: str
    pid: int
    cpus: int
    memory_mib: int
    hit: bool
    def __init__(self, handle_version: _Optional[int] = ..., handle: _Optional[bytes] = ..., vm_id: _Optional[str] = ..., pid: _Optional[int] = ..., cpus: _Optional[int] = ..., memory_mib: _Optional[int] = ..., hit: _Optional[bool] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CachedVM(_message.Message):
    __slots__ = ("id", "pid", "cpus", "memory_mib", "age_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    pid: int
    cpus: int
    memory_mib: int
    age_s: float
    def __init__(self, id: _Optional[str] = ..., pid: _Optional[int] = ..., cpus: _Optional[int] = ..., memory_mib: _Optional[int] = ..., age_s: _Optional[float] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("pid", "server_version", "state", "pool_size", "pool_ready", "vms", "live", "document_version", "document")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[StatusReply.State]
        STATE_STARTING: _ClassVar[StatusReply.State]
        STATE_SERVING: _ClassVar[StatusReply.State]
        STATE_DRAINING: _ClassVar[StatusReply.State]
        STATE_DEGRADED: _ClassVar[StatusReply.State]
    STATE_UNSPECIFIED: StatusReply.State
    STATE_STARTING: StatusReply.State
    STATE_SERVING: StatusReply.State
    STATE_DRAINING: StatusReply.State
    STATE_DEGRADED: StatusReply.State
    PID_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    POOL_SIZE_FIELD_NUMBER: _ClassVar[int]
    POOL_READY_FIELD_NUMBER: _ClassVar[int]
    VMS_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    pid: int
    server_version: str
    state: StatusReply.State
    pool_size: int
    pool_ready: int
    vms: _containers.RepeatedCompositeFieldContainer[CachedVM]
    live: _containers.RepeatedCompositeFieldContainer[CachedVM]
    document_version: int
    document: bytes
    def __init__(self, pid: _Optional[int] = ..., server_version: _Optional[str] = ..., state: _Optional[_Union[StatusReply.State, str]] = ..., pool_size: _Optional[int] = ..., pool_ready: _Optional[int] = ..., vms: _Optional[_Iterable[_Union[CachedVM, _Mapping]]] = ..., live: _Optional[_Iterable[_Union[CachedVM, _Mapping]]] = ..., document_version: _Optional[int] = ..., document: _Optional[bytes] = ...) -> None: ...

class QuitRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class QuitReply(_message.Message):
    __slots__ = ("pid",)
    PID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    def __init__(self, pid: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("vm_id", "phases", "fallback")
    class PhasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    phases: _containers.ScalarMap[str, float]
    fallback: str
    def __init__(self, vm_id: _Optional[str] = ..., phases: _Optional[_Mapping[str, float]] = ..., fallback: _Optional[str] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
