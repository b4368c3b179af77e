"""The committed stubs are those that `make proto` generates."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PROTO_ROOT = REPOSITORY / "proto"
SHARD_PROTO = PROTO_ROOT / "textmill_proto" / "v1" / "shard.proto"
STUBS = ("shard_pb2.py", "shard_pb2.pyi", "shard_pb2_grpc.py", "shard_pb2_grpc.pyi")


def generate(target: Path) -> Path:
    """Generate the stubs below `target` as `make proto` does, and return their folder."""
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    plugins = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTO_ROOT), *outputs, str(SHARD_PROTO)]
    subprocess.run(command, check=True, capture_output=True, timeout=60, env={**os.environ, "PATH": plugins})
    return target / "textmill_proto" / "v1"


def test_committed_stubs_fit_the_proto(tmp_path: Path) -> None:
    fresh = generate(tmp_path)
    assert sorted(path.name for path in fresh.iterdir()) == sorted(STUBS)
    stale = [name for name in STUBS if (SHARD_PROTO.parent / name).read_bytes() != (fresh / name).read_bytes()]
    assert not stale, "run `make proto` and commit the result"


def test_every_field_of_the_wire_has_a_comment_or_a_type_of_its_own() -> None:
    """Each scalar has a comment with its unit. A field of a message's type is explained at that message."""
    scalars = ("uint32", "uint64", "int32", "float", "double", "bool", "bytes", "string")
    fields = [
        line.strip()
        for line in SHARD_PROTO.read_text().splitlines()
        if line.strip().removeprefix("repeated ").removeprefix("optional ").startswith(scalars)
    ]
    assert len(fields) > 60
    assert [line for line in fields if "//" not in line] == []
