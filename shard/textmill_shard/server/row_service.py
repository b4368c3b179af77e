"""The gRPC side of a shard of rows: TaskInfo, Health and RunRows."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grpc
from textmill_proto.v1 import shard_pb2 as pb
from textmill_proto.v1 import shard_pb2_grpc

from textmill_shard.engine.status import ShardStatus
from textmill_shard.server.calls import abort, health_report
from textmill_shard.server.row_wire import answers_to_wire, batch_from_wire, task_facts_to_wire
from textmill_shard.tasks.batch_check import BatchRejected, check_batch
from textmill_shard.tasks.row_loop import LoopBusy, LoopEnded, RowLoop
from textmill_shard.tasks.rows import RowBatch
from textmill_shard.tasks.task_facts import TaskFacts

log = logging.getLogger(__name__)

CANCEL_CHECK_S = 0.5  # a call that has left while its batch waits is noticed this often
_NO_STREAM = "the model of this shard computes rows: its calls are TaskInfo and RunRows"


class FileReader(Protocol):
    """Makes files, tables (`tasks/table_reader.py`) or strings ready for the model (`tasks/media_rows.py`).

    Any thread may call `read`.
    """

    def read(self, rows: Sequence[Any]) -> Sequence[Any]: ...


class RowService(shard_pb2_grpc.ShardServicer):
    """The service, which answers Health from the start and all calls after `set_loaded`."""

    def __init__(self, status: ShardStatus) -> None:
        self._status = status
        self._facts: TaskFacts | None = None
        self._loop: RowLoop | None = None
        self._reader: FileReader | None = None

    def set_loaded(self, facts: TaskFacts, loop: RowLoop, reader: FileReader | None = None) -> None:
        """Serve this model from now on. Called once. A model of files, tables or strings has a reader of them."""
        self._loop = loop
        self._reader = reader
        self._facts = facts
        self._status.report_ready()

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.ShardInfo:
        """End with UNIMPLEMENTED, because a model of rows has no slots and no blocks."""
        abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_STREAM)

    def Run(self, request_iterator: Iterator[pb.ToShard], context: grpc.ServicerContext) -> Iterator[pb.FromShard]:
        """End with UNIMPLEMENTED, because a model of rows does not generate."""
        abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_STREAM)

    def LoadAdapter(self, request: pb.LoadAdapterRequest, context: grpc.ServicerContext) -> pb.AdapterInfo:
        """End with UNIMPLEMENTED, because adapters belong to models that write text."""
        abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_STREAM)

    def HasMedia(self, request: pb.MediaDigests, context: grpc.ServicerContext) -> pb.MediaDigests:
        """End with UNIMPLEMENTED, because rows without generation carry their files."""
        abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_STREAM)

    def Put(self, request_iterator: Iterator[pb.MediaPart], context: grpc.ServicerContext) -> pb.PutAnswer:
        """End with UNIMPLEMENTED, because rows without generation carry their files."""
        abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_STREAM)

    def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: grpc.ServicerContext) -> pb.UnloadAdapterAnswer:
        """End with UNIMPLEMENTED, because adapters belong to models that write text."""
        abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_STREAM)

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthReport:
        """Answer with the state of the start and the age of the last batch."""
        return health_report(self._status)

    def TaskInfo(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.TaskFacts:
        """Answer with the facts of the model; UNAVAILABLE while the model loads."""
        return task_facts_to_wire(self._require_facts(context))

    def RunRows(self, request: pb.RowBatch, context: grpc.ServicerContext) -> pb.RowAnswers:
        """Compute a batch. The statuses of faults are those of rules 27 and 31."""
        facts, loop = self._require_facts(context), self._loop
        assert loop is not None
        try:
            batch = batch_from_wire(request)
            check_batch(batch, facts)
            waiting = loop.submit(batch, self._ready(batch))
        except BatchRejected as rejected:
            log.error("a batch breaks a rule", extra={"batch": request.number, "rule": str(rejected)})
            abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(rejected))
        except LoopBusy as busy:
            abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(busy))
        except LoopEnded as ended:
            abort(context, grpc.StatusCode.UNAVAILABLE, str(ended))
        while not waiting.is_done.wait(CANCEL_CHECK_S):
            if not context.is_active():
                waiting.is_cancelled = True
        if waiting.answers is None:
            abort(
                context,
                grpc.StatusCode.UNAVAILABLE,
                "the batch was not computed, because its call left or the shard stops",
            )
        return answers_to_wire(waiting.answers)

    def _ready(self, batch: RowBatch) -> Sequence[Any] | None:
        """Decode files, lay out tables or tokenise strings, while the batch before runs. None for token ids."""
        return None if self._reader is None else self._reader.read(batch.rows)

    def _require_facts(self, context: grpc.ServicerContext) -> TaskFacts:
        if self._facts is None:
            abort(context, grpc.StatusCode.UNAVAILABLE, f"loading: {self._status.snapshot.phase}")
        return self._facts
