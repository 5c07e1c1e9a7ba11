# SPDX-License-Identifier: Apache-2.0
"""The committed generated code equals the .proto files, and those equal the published wire contract."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[3]
PROTOS = sorted(path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*.proto"))
CONTRACT = [
    line
    for line in (Path(__file__).parent / "wire_contract.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
TYPES = descriptor_pb2.FieldDescriptorProto


def generated(proto: str) -> descriptor_pb2.FileDescriptorProto:
    name = proto.removesuffix(".proto").replace("/", ".")
    module = importlib.import_module(f"rover_plugin._generated.{name}_pb2")
    return descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


@pytest.mark.parametrize("proto", PROTOS)
def test_committed_code_equals_its_proto_file(proto: str, tmp_path: Path) -> None:
    target = tmp_path / "set.bin"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{ROOT / 'protos'}",
            f"--descriptor_set_out={target}",
            str(ROOT / "protos" / proto),
        ],
        check=True,
    )
    (compiled,) = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    clear_json_names(compiled.message_type)
    assert generated(proto) == compiled, "run scripts/protos"


def clear_json_names(messages: object) -> None:
    """protoc writes derived JSON names into descriptor sets, never into generated code."""
    for message in messages:
        for field in message.field:
            field.ClearField("json_name")
        clear_json_names(message.nested_type)


def test_every_line_of_the_wire_contract_is_in_the_protos_and_nothing_else() -> None:
    assert sorted(described()) == sorted(canonical(line) for line in CONTRACT)


def canonical(line: str) -> str:
    """Puts the members of a message or enum line in the order of their numbers."""
    name, colon, members = line.partition(": ")
    if not colon:
        return line
    separator = ", " if name.startswith("enum ") else "; "
    if members == "(empty)":
        return line
    return f"{name}: " + separator.join(sorted(members.split(separator), key=number))


def number(member: str) -> int:
    return int(re.findall(r"^\d+|(?<==)\d+", member)[0])


def described() -> list[str]:
    """The protos, written the way the contract's tables are."""
    lines = []
    for proto in (name for name in PROTOS if name.startswith("skywalking/")):
        file = generated(proto)
        assert file.package == "skywalking.v3"
        lines.append("file " + proto.removeprefix("skywalking/"))
        lines.extend(
            f"enum {enum.name}: " + ", ".join(f"{value.name}={value.number}" for value in enum.value)
            for enum in file.enum_type
        )
        for message in file.message_type:
            fields = "; ".join(described_field(message, field) for field in message.field)
            lines.append(f"{message.name}: {fields or '(empty)'}")
        lines.extend(
            f"service {service.name}.{method.name}({'stream ' * method.client_streaming}{short(method.input_type)}) "
            f"returns ({short(method.output_type)})"
            for service in file.service
            for method in service.method
        )
    return [canonical(line) for line in lines]


def described_field(message: descriptor_pb2.DescriptorProto, field: descriptor_pb2.FieldDescriptorProto) -> str:
    kind = short(field.type_name) or TYPES.Type.Name(field.type).removeprefix("TYPE_").lower()
    repeated = "repeated " * (field.label == TYPES.LABEL_REPEATED)
    oneof = f" (oneof {message.oneof_decl[field.oneof_index].name})" if field.HasField("oneof_index") else ""
    return f"{field.number} {field.name}: {repeated}{kind}{oneof}"


def short(type_name: str) -> str:
    return type_name.removeprefix(".skywalking.v3.")
