"""What the services of both kinds of shards share: the answer of Health, and calls that end with a status."""

from typing import NoReturn

import grpc
from textmill_proto.v1 import shard_pb2 as pb

from textmill_shard.engine.status import ShardState, ShardStatus

_STATES = {
    ShardState.LOADING: pb.SHARD_STATE_LOADING,
    ShardState.READY: pb.SHARD_STATE_READY,
    ShardState.FAILED: pb.SHARD_STATE_FAILED,
}


def health_report(status: ShardStatus) -> pb.HealthReport:
    """Return the state of the start and the age of the last step."""
    snapshot = status.snapshot
    return pb.HealthReport(
        state=_STATES[snapshot.state],
        phase=snapshot.phase,
        progress=snapshot.progress,
        last_step=snapshot.last_step,
        last_step_age_ms=status.last_step_age_ms(),
        is_busy=snapshot.is_busy,
        detail=snapshot.detail,
        progress_limit_ms=status.progress_limit_ms,
        overdue_ms=status.overdue_ms(),
    )


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    """End the call with a status."""
    context.abort(code, message)
    raise AssertionError("abort raises")
