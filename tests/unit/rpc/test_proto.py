"""The generated code is that of the .proto files, and its messages carry what they are given."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.rules.capabilities import need
from vmfork.rpc import cache_pb2 as pb
from vmfork.rpc import node_pb2

SRC = Path(__file__).parents[3] / "src"
COMMITTED = {"cache": pb.DESCRIPTOR, "node": node_pb2.DESCRIPTOR}
PROTOS = [f"vmfork/rpc/{name}.proto" for name in COMMITTED]
GENERATED = tuple(f"{name}{end}" for name in COMMITTED for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """A folder with what the installed generator makes of the files; `description` is their meaning."""
    out = tmp_path_factory.mktemp("generated")
    names = ("python_out", "pyi_out", "grpc_python_out")
    outputs = [*(f"--{name}={out}" for name in names), f"--descriptor_set_out={out}/description"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{SRC}", *outputs, *PROTOS], check=True, cwd=SRC)
    return out


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_code_means_what_the_file_says(generated, name) -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString((generated / "description").read_bytes()).file
    fresh = next(file for file in files if file.name == f"vmfork/rpc/{name}.proto")
    committed = descriptor_pb2.FileDescriptorProto()
    COMMITTED[name].CopyToProto(committed)
    fresh.ClearField("source_code_info")
    for message in fresh.message_type:
        for field in (*message.field, *(field for nested in message.nested_type for field in nested.field)):
            field.ClearField("json_name")  # the generator adds it to the one and not to the other
    assert committed == fresh


@pytest.mark.parametrize("name", GENERATED)
def test_the_committed_code_is_what_the_generator_writes(generated, name) -> None:
    def made_by(folder: Path) -> list[str]:
        texts = [(folder / file).read_text() for file in GENERATED]
        return re.findall(r"Protobuf Python Version: (\S+)|GRPC_GENERATED_VERSION = '(\S+)'", "\n".join(texts))

    fresh, committed = generated / "vmfork" / "rpc", SRC / "vmfork" / "rpc"
    need("same-generator", found=made_by(fresh) == made_by(committed))
    assert (committed / name).read_text() == (fresh / name).read_text(), "run tools/generate"


@pytest.mark.parametrize(
    "message",
    [
        pb.ConfigReply(
            config_version=1, config=b'{"cpus": 1}', traits={"accel": "tcg"}, cpus=2, hardware=b"{}", name="x"
        ),
        pb.GetBaseVMRequest(ttl_s=2.5, client="process 1", fingerprint="0123"),
        pb.GetBaseVMReply(
            handle_version=1, handle=b"\x00\xff", vm_id="ab", pid=2**40, cpus=1, memory_mib=256, hit=True
        ),
        pb.StatusReply(pid=1, state=pb.StatusReply.STATE_DRAINING, vms=[pb.CachedVM(id="a", pid=3, age_s=0.5)]),
        pb.ReportRequest(vm_id="ab", phases={"adopt": 0.004}, fallback="cpus"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_come_back_as_they_went(message) -> None:
    back = type(message).FromString(message.SerializeToString())
    assert back == message
    assert back.ListFields()


# Names and numbers that other programs were built with: they may be added to, never changed.
PUBLISHED = {
    "ConfigReply": {
        "config_version": 1, "config": 2, "traits": 3, "cpus": 4, "memory_mib": 5, "max_cpus": 6, "max_memory_mib": 7,
        "server_version": 8, "hardware": 9, "name": 10, "fingerprint": 11,
    },
    "GetBaseVMRequest": {"ttl_s": 1, "client": 2, "fingerprint": 3},
    "GetBaseVMReply": {
        "handle_version": 1, "handle": 2, "vm_id": 3, "pid": 4, "cpus": 5, "memory_mib": 6, "hit": 7,
    },
    "StatusReply": {
        "pid": 1, "server_version": 2, "state": 3, "pool_size": 4, "pool_ready": 5, "vms": 6, "live": 7,
        "document_version": 8, "document": 9,
    },
    "CachedVM": {"id": 1, "pid": 2, "cpus": 3, "memory_mib": 4, "age_s": 5},
    "QuitReply": {"pid": 1},
    "ReportRequest": {"vm_id": 1, "phases": 2, "fallback": 3},
    "Request": {"verb": 1, "arguments": 2},
    "Answer": {"value": 1, "error": 2},
    "Value": {"flag": 1, "whole": 2, "real": 3, "text": 4, "content": 5, "items": 6, "record": 7},
    "Items": {"kind": 1, "values": 2},
    "Record": {"name": 1, "entries": 2},
    "Entry": {"key": 1, "value": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fields_keep_their_numbers(name) -> None:
    messages = {**pb.DESCRIPTOR.message_types_by_name, **node_pb2.DESCRIPTOR.message_types_by_name}
    fields = {field.name: field.number for field in messages[name].fields}
    assert fields.items() >= PUBLISHED[name].items()
