"""A shard of rows behind a real socket, with a tiny model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from textmill_proto.v1 import shard_pb2 as pb
from textmill_proto.v1 import shard_pb2_grpc
from textmill_shard.engine.status import ShardStatus
from textmill_shard.row_start import start_rows
from textmill_shard.server.row_service import RowService
from textmill_shard.server.server import start_server
from textmill_shard.settings import ServeSettings, load_settings
from transformers import AutoModelForSequenceClassification

from tests.fakes.tiny_tasks import alone, make_task_model, random_rows

WAIT_S = 10.0


def settings_of(model_dir: Path, socket: Path, *flags: str) -> ServeSettings:
    settings = load_settings(
        ["serve", "--model-dir", str(model_dir), "--uds-path", str(socket), "--no-native-kernels", *flags], {}
    )
    assert isinstance(settings, ServeSettings)
    return settings


@contextmanager
def serve(settings: ServeSettings) -> Iterator[tuple[shard_pb2_grpc.ShardStub, RowService]]:
    status = ShardStatus()
    service = RowService(status)
    server = start_server(service, settings.uds_path)
    channel = grpc.insecure_channel(f"unix:{settings.uds_path}")
    started = start_rows(settings, "cpu", status)
    loop = started.loop
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        stub = shard_pb2_grpc.ShardStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.TaskInfo(pb.InfoRequest(), timeout=WAIT_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        service.set_loaded(started.facts, loop, started.reader)
        yield stub, service
    finally:
        loop.stop()
        thread.join(WAIT_S)
        channel.close()
        server.stop(0).wait(WAIT_S)
        assert not thread.is_alive()


def batch_of(rows: Any, number: int = 1) -> pb.RowBatch:
    return pb.RowBatch(
        number=number,
        text=pb.TextRows(
            token_ids=np.concatenate([row.token_ids for row in rows]).astype("<u4").tobytes(),
            lengths=np.array([row.num_tokens for row in rows], "<u4").tobytes(),
        ),
        labels=pb.LabelHead(),
    )


def test_a_batch_is_answered_with_what_transformers_computes(tmp_path: Path) -> None:
    model = make_task_model(tmp_path, "roberta", AutoModelForSequenceClassification, num_labels=3)
    rows = random_rows((5, 9, 9, 30))
    settings = settings_of(tmp_path, tmp_path / "s", "--task", "rerank", "--max-batch-tokens", "300")
    with serve(settings) as (stub, _):
        facts = stub.TaskInfo(pb.InfoRequest(), timeout=WAIT_S)
        assert (facts.task, list(facts.heads), facts.max_batch_tokens) == ("rerank", ["labels"], 300)
        assert (facts.model_type, facts.dtype, facts.device, facts.max_row_tokens) == ("roberta", "float32", "cpu", 94)
        answers = stub.RunRows(batch_of(rows, number=8), timeout=WAIT_S)
        health = stub.Health(pb.HealthRequest(), timeout=WAIT_S)
    assert (answers.number, answers.labels.num_labels) == (8, 3)
    found = np.frombuffer(answers.labels.logits, "<f4").reshape(4, 3)
    np.testing.assert_allclose(found, [alone(model, row).logits[0].numpy() for row in rows], atol=1e-5)
    assert answers.compute_ns > 0
    assert (health.state, health.last_step, health.overdue_ms) == (pb.SHARD_STATE_READY, 1, 0)
    assert health.progress_limit_ms >= 1000


def test_rule_31_the_shard_goes_on_after_a_batch_that_breaks_a_rule(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModelForSequenceClassification)
    with serve(settings_of(tmp_path, tmp_path / "s", "--task", "text-classification")) as (stub, _):
        bad = batch_of(random_rows((4,)))
        bad.vectors.SetInParent()
        with pytest.raises(grpc.RpcError) as caught:
            stub.RunRows(bad, timeout=WAIT_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "head: vectors is asked for, this model serves labels"
        assert stub.RunRows(batch_of(random_rows((4,))), timeout=WAIT_S).labels.num_labels == 2


def test_calls_of_the_other_kind_of_shard_are_unimplemented(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModelForSequenceClassification)
    with serve(settings_of(tmp_path, tmp_path / "s", "--task", "text-classification")) as (stub, _):
        calls = (
            lambda: stub.Info(pb.InfoRequest(), timeout=WAIT_S),
            lambda: list(stub.Run(iter(()), timeout=WAIT_S)),
            lambda: stub.LoadAdapter(pb.LoadAdapterRequest(), timeout=WAIT_S),
            lambda: stub.UnloadAdapter(pb.UnloadAdapterRequest(), timeout=WAIT_S),
        )
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stopped_loop_answers_unavailable(tmp_path: Path) -> None:
    make_task_model(tmp_path, "bert", AutoModelForSequenceClassification)
    with serve(settings_of(tmp_path, tmp_path / "s", "--task", "text-classification")) as (stub, service):
        assert service._loop is not None
        service._loop.stop()
        with pytest.raises(grpc.RpcError) as caught:
            stub.RunRows(batch_of(random_rows((4,))), timeout=WAIT_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
