"""A shard without a model behind the real gRPC contract. A script gives its tokens, its step time and its faults.

A test writes `with FakeShard(folder / "shard.sock") as shard: ...`. `python -m tests.fakes.fake_shard --help` shows how
to run the fake shard by hand.
"""

import argparse
import hashlib
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from textmill_proto import PROTOCOL_VERSION
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc

from tests.fakes.fake_slots import BadPlan, Script, SlotTable, adapted_byte

MAX_MESSAGE_BYTES = 64 << 20
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "bool": 1}
IDLE_POLL_S = 0.05  # between two looks of an idle shard whether it must end and whether the lease has run out


def alphabet_script(prompt_ids: object, num_output: int) -> int:
    """Return the byte of the next letter of abc ... z abc ..., so that the text shows the number of each token."""
    return 97 + num_output % 26


def text_script(text: str, end_id: int) -> Script:
    """Return a script that gives the bytes of a text and then an end id, for the byte tokenizer without merges."""
    data = text.encode()
    return lambda prompt_ids, num_output: data[num_output] if num_output < len(data) else end_id


ADAPTER_FILE = "adapter_model.safetensors"


def write_adapter(folder: Path, content: str) -> bytes:
    """Write an adapter as the fake shard takes adapters, and return its digest. The shard refuses the content `bad`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_FILE).write_text(content)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def adapted_text(digest: bytes, num_tokens: int) -> str:
    """Return the text of a request with this adapter."""
    return bytes(adapted_byte(digest, index) for index in range(num_tokens)).decode()


@dataclass(frozen=True, slots=True)
class FakeShardOptions:
    """The facts of the shard, and its behaviour without faults."""

    script: Script = alphabet_script
    logprob_of: Callable[[int], float] = lambda request_id: -0.5
    step_s: float = 0.0  # simulated time of a step
    num_slots: int = 64
    num_blocks: int = 4096
    block_size: int = 16
    max_step_tokens: int = 4096
    vocab_size: int = 258
    eos_token_ids: tuple[int, ...] = (257,)
    max_model_tokens: int = 32768
    model_id: str = "fake"
    dtype: str = "float32"
    tokenizer_digest: str = ""
    decoder_prompt_ids: tuple[int, ...] = ()  # where not empty, an encoder reads the prompts
    max_encoder_tokens: int = 0
    protocol_version: int = PROTOCOL_VERSION
    lease_s: float = 5.0
    heartbeat_s: float = 1.0
    adapter_bytes: int = 1000  # of all adapters; the file of an adapter has as many bytes as the adapter takes
    max_adapter_rank: int = 64
    media_kinds: tuple[str, ...] = ()  # where not empty, prompts may have images
    media_cache_bytes: int = 1 << 20
    media_row_bytes: int = 4


class _Epoch:
    """One live stream."""

    def __init__(self, number: int, table: SlotTable) -> None:
        self.number = number
        self.table = table
        self.plans: queue.SimpleQueue[shard_pb2.Plan] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[shard_pb2.FromShard | None] = queue.SimpleQueue()  # None ends the stream
        self.has_ended = threading.Event()
        self.heard_s = time.monotonic()
        self.end_code: grpc.StatusCode | None = None
        self.end_reason = ""
        self.num_steps = 0

    def end(self, code: grpc.StatusCode | None, reason: str) -> None:
        self.end_code, self.end_reason = code, reason
        self.has_ended.set()
        self.outbox.put(None)


class FakeShard(shard_pb2_grpc.ShardServicer):
    """A context manager that serves on a Unix socket. Public methods cause faults, and may be called at any time."""

    def __init__(self, uds_path: Path, options: FakeShardOptions | None = None) -> None:
        self._uds_path = uds_path
        self._options = options or FakeShardOptions()
        self.step_s = self._options.step_s  # may be changed at any time
        self._lock = threading.Lock()
        self._epochs = itertools.count(1)
        self._live: _Epoch | None = None
        self._may_step = threading.Event()
        self._may_step.set()
        self._may_speak = threading.Event()
        self._may_speak.set()
        self._loading: tuple[str, float] | None = None
        self._failed: str | None = None
        self._cut_condition: Callable[[SlotTable], bool] | None = None
        self._adds_stray_row = False
        self._garbles_next = False
        self._reject_next: str | None = None
        self._first_message: shard_pb2.FromShard | None = None
        self._info_changes: dict[str, Any] = {}
        self._threads: list[threading.Thread] = []
        self.history: list[SlotTable] = []  # the slot tables of all epochs, the live one last
        self.num_refused_streams = 0
        self.num_plans = 0
        self.last_admit: shard_pb2.Admit | None = None  # the message as it came
        self.prompts: list[bytes] = []  # of all requests that were admitted, as texts of the byte tokenizer
        self.num_sampled = 0  # tokens, over all epochs
        self.adapters: dict[bytes, int] = {}  # bytes by digest; a lost stream keeps them
        self.adapter_calls: list[str] = []  # "load NAME" with the folder's name, "unload DIGEST", as they came
        self.media: dict[bytes, int] = {}  # rows of the images that are kept, by digest; a lost stream keeps them
        self.media_calls: list[str] = []  # "has NUMBER", "put DIGEST", "admit" of a request with images
        self.refuse_media: dict[bytes, tuple[grpc.StatusCode, str]] = {}  # how the next Put of a digest ends
        self.forgets_media = False  # keeps no image that is put
        self._may_put = threading.Event()
        self._may_put.set()
        self._is_leaving = False
        self._may_load = threading.Event()
        self._may_load.set()

    def __enter__(self) -> Self:
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(8, "fake-shard"), options=options)
        shard_pb2_grpc.add_ShardServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self._uds_path}")
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut("the shard is going away")
        self._may_step.set()
        self._may_speak.set()
        self._is_leaving = True
        self._may_load.set()
        self._may_put.set()
        self._server.stop(grace=0.2).wait(5)
        for thread in list(self._threads):
            thread.join(5)
        self._uds_path.unlink(missing_ok=True)

    # ---- Faults and controls.

    def cut(self, reason: str = "scripted cut") -> None:
        """End the live stream, and with the stream its epoch and all slots."""
        with self._lock:
            epoch, self._live = self._live, None
        if epoch is not None:
            epoch.end(grpc.StatusCode.UNAVAILABLE, reason)

    def cut_when(self, condition: Callable[[SlotTable], bool]) -> None:
        """End the stream once, right after the result of the first step after which the condition holds."""
        self._cut_condition = condition

    def pause(self) -> None:
        """Compose no further step until `resume`. Plans wait, and heartbeats go on."""
        self._may_step.clear()

    def resume(self) -> None:
        self._may_step.set()

    def stop_answering(self) -> None:
        """Send no further message and no heartbeat until `answer_again`. The stream stays open."""
        self._may_speak.clear()

    def answer_again(self) -> None:
        self._may_speak.set()

    def pause_loads(self) -> None:
        """Answer no LoadAdapter until `resume_loads`."""
        self._may_load.clear()

    def resume_loads(self) -> None:
        self._may_load.set()

    def pause_puts(self) -> None:
        """Answer no Put until `resume_puts`."""
        self._may_put.clear()

    def resume_puts(self) -> None:
        self._may_put.set()

    def fail_slot(self, slot: int) -> None:
        """Let the next step report an error for the occupant of the slot."""
        assert self._live is not None
        self._live.table.failing_slots.add(slot)

    def reject_next_admission(self, message: str = "scripted rejection") -> None:
        """Refuse the next plan that admits a request (rule 20)."""
        self._reject_next = message

    def begin_next_with(self, message: shard_pb2.FromShard) -> None:
        """Send this message in the place of the next Hello."""
        self._first_message = message

    def break_rule(self) -> None:
        """Let the next step that samples also report a row for a free slot, which breaks rule 6."""
        self._adds_stray_row = True

    def garble_next_result(self) -> None:
        """Send the next result with a byte too many."""
        self._garbles_next = True

    def load(self, phase: str | None, progress: float = 0.0) -> None:
        """Report a phase of loading from now on, or with None readiness. A shard that loads serves no stream."""
        self._loading = None if phase is None else (phase, progress)

    def fail(self, detail: str | None) -> None:
        """Report the state FAILED with this reason from now on, or with None no failure."""
        self._failed = detail

    def change_info(self, **changes: Any) -> None:
        """Change fields of `ShardInfo` from the next epoch on."""
        self._info_changes = changes

    @property
    def epoch(self) -> int:
        """The number of the live epoch, or 0 when there is none."""
        return 0 if self._live is None else self._live.number

    @property
    def num_steps(self) -> int:
        return 0 if self._live is None else self._live.num_steps

    # ---- The service.

    def Info(self, request: shard_pb2.InfoRequest, context: grpc.ServicerContext) -> shard_pb2.ShardInfo:
        if self._loading is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
        return self._info()

    def Health(self, request: shard_pb2.HealthRequest, context: grpc.ServicerContext) -> shard_pb2.HealthReport:
        if self._failed is not None:
            return shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_FAILED, detail=self._failed)
        if self._loading is not None:
            phase, progress = self._loading
            return shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_LOADING, phase=phase, progress=progress)
        return shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_READY, last_step=self.num_steps)

    def Run(
        self, request_iterator: Iterator[shard_pb2.ToShard], context: grpc.ServicerContext
    ) -> Iterator[shard_pb2.FromShard]:
        with self._lock:
            if self._live is not None:
                self.num_refused_streams += 1
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "a stream is live")
            epoch = self._live = self._new_epoch()
        context.add_callback(lambda: self._forget(epoch))
        self._may_speak.wait()
        first, self._first_message = self._first_message, None
        yield first or shard_pb2.FromShard(epoch=epoch.number, hello=shard_pb2.Hello(info=self._info()))
        for target in (lambda: self._listen(epoch, request_iterator), lambda: self._step_all(epoch)):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)
        while True:
            try:
                message = epoch.outbox.get(timeout=self._options.heartbeat_s)
            except queue.Empty:
                message = shard_pb2.FromShard(epoch=epoch.number, heartbeat=self._heartbeat(epoch))
            if message is None:
                break
            self._may_speak.wait()
            yield message
        self._forget(epoch)
        if epoch.end_code is not None:
            context.abort(epoch.end_code, epoch.end_reason)

    def LoadAdapter(
        self, request: shard_pb2.LoadAdapterRequest, context: grpc.ServicerContext
    ) -> shard_pb2.AdapterInfo:
        folder = Path(request.folder)
        self.adapter_calls.append(f"load {folder.name}")
        self._may_load.wait()
        if self._is_leaving:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the shard is going away")
        try:
            content = (folder / ADAPTER_FILE).read_bytes()
        except OSError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{folder} holds no {ADAPTER_FILE}")
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if content == b"bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{folder}: the tensor x has no module, nearest is y")
        if request.expected_digest not in (b"", digest):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the digest is another one than before")
        with self._lock:
            free_bytes = self._options.adapter_bytes - sum(self.adapters.values())
            if digest not in self.adapters and len(content) > free_bytes:
                message = f"the adapter takes {len(content)} bytes, {free_bytes} are free (--lora-memory-bytes)"
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
            self.adapters[digest] = len(content)
        return shard_pb2.AdapterInfo(
            digest=digest, max_rank=8, num_bytes=len(content), num_modules=4, target_names=["q_proj"]
        )

    def UnloadAdapter(
        self, request: shard_pb2.UnloadAdapterRequest, context: grpc.ServicerContext
    ) -> shard_pb2.UnloadAdapterAnswer:
        self.adapter_calls.append(f"unload {request.digest.hex()}")
        epoch = self._live
        seats = [] if epoch is None else list(epoch.table.seats.values())
        if any(seat.adapter_digest == request.digest for seat in seats):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "a slot holds the adapter")
        with self._lock:
            if self.adapters.pop(request.digest, None) is None:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such adapter")
        return shard_pb2.UnloadAdapterAnswer()

    def HasMedia(self, request: shard_pb2.MediaDigests, context: grpc.ServicerContext) -> shard_pb2.MediaDigests:
        self.media_calls.append(f"has {len(request.digests)}")
        return shard_pb2.MediaDigests(digests=[digest for digest in request.digests if digest in self.media])

    def Put(
        self, request_iterator: Iterator[shard_pb2.MediaPart], context: grpc.ServicerContext
    ) -> shard_pb2.PutAnswer:
        header = next(request_iterator).header
        num_bytes = sum(len(part.data) for part in request_iterator)
        self.media_calls.append(f"put {header.digest.hex()}")
        self._may_put.wait()
        if self._is_leaving:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the shard is going away")
        if header.digest in self.refuse_media:
            context.abort(*self.refuse_media.pop(header.digest))
        wanted = sum(math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype] for tensor in header.tensors)
        if num_bytes != wanted or header.kind not in self._info().media_kinds:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{num_bytes} bytes of {wanted}, kind {header.kind}")
        if not self.forgets_media:
            self.media[header.digest] = header.num_rows
        return shard_pb2.PutAnswer()

    # ---- Inner parts.

    def _info(self) -> shard_pb2.ShardInfo:
        options = self._options
        info = shard_pb2.ShardInfo(
            protocol_version=options.protocol_version,
            model_id=options.model_id,
            model_type="fake",
            dtype=options.dtype,
            device="cpu",
            world_size=1,
            block_size=options.block_size,
            num_blocks=options.num_blocks,
            num_slots=options.num_slots,
            max_step_tokens=options.max_step_tokens,
            vocab_size=options.vocab_size,
            eos_token_ids=options.eos_token_ids,
            layout="flat",
            features=["prefix_cache", "prompt_logprobs", "grammar", "beams"],
            tokenizer_digest=options.tokenizer_digest,
            max_model_tokens=options.max_model_tokens,
            decoder_prompt_ids=options.decoder_prompt_ids,
            max_encoder_tokens=options.max_encoder_tokens,
            adapter_bytes=options.adapter_bytes,
            max_adapter_rank=options.max_adapter_rank,
            adapter_digests=sorted(self.adapters),
            media_kinds=options.media_kinds,
            media_cache_bytes=options.media_cache_bytes if options.media_kinds else 0,
            media_row_bytes=options.media_row_bytes if options.media_kinds else 0,
            kv_dtype="fp8_e4m3fn",
        )
        for name, value in self._info_changes.items():
            if isinstance(value, list):
                getattr(info, name)[:] = value
            else:
                setattr(info, name, value)
        return info

    def _new_epoch(self) -> _Epoch:
        info = self._info()
        table = SlotTable(
            num_slots=info.num_slots,
            num_blocks=info.num_blocks,
            block_size=info.block_size,
            max_step_tokens=info.max_step_tokens,
            eos_token_ids=frozenset(info.eos_token_ids),
            script=self._options.script,
            logprob_of=self._options.logprob_of,
            adapters=self.adapters,
            media=self.media,
        )
        self.history.append(table)
        return _Epoch(next(self._epochs), table)

    def _forget(self, epoch: _Epoch) -> None:
        """Note that the stream is over, whichever side has ended it."""
        with self._lock:
            if self._live is epoch:
                self._live = None
        if not epoch.has_ended.is_set():
            epoch.end(None, "")

    def _heartbeat(self, epoch: _Epoch) -> shard_pb2.Heartbeat:
        return shard_pb2.Heartbeat(last_step=epoch.num_steps, plan_applied=epoch.table.plan_applied)

    def _listen(self, epoch: _Epoch, messages: Iterator[shard_pb2.ToShard]) -> None:
        try:
            for message in messages:
                epoch.heard_s = time.monotonic()
                if message.epoch != epoch.number:
                    epoch.end(grpc.StatusCode.INVALID_ARGUMENT, f"epoch {message.epoch}, live is {epoch.number}")
                elif message.WhichOneof("message") == "plan":
                    self.num_plans += 1
                    for admit in message.plan.admits:
                        self.last_admit = admit
                        if admit.media:
                            self.media_calls.append("admit")
                        self.prompts.append(bytes(byte for byte in admit.prompt_ids[::4] if byte))
                    epoch.plans.put(message.plan)
        except grpc.RpcError:
            pass  # gRPC tells the end of a broken stream by raising
        if not epoch.has_ended.is_set():
            self._forget(epoch)

    def _step_all(self, epoch: _Epoch) -> None:
        table = epoch.table
        next_step_s = 0.0
        while not epoch.has_ended.is_set():
            if not self._take_plans(epoch, wait=not table.is_runnable or not self._may_step.is_set()):
                continue
            now = time.monotonic()
            # Steps come at a steady rate, because the time to build a result is part of the step, as on a device.
            next_step_s = max(next_step_s + self.step_s, now)
            if next_step_s > now:
                time.sleep(next_step_s - now)
            epoch.num_steps += 1
            result = table.compose(epoch.num_steps)
            if self._adds_stray_row and result.flags:
                self._adds_stray_row = False
                free_slot = next(slot for slot in range(table.num_slots) if slot not in table.seats)
                result.slots += free_slot.to_bytes(4, "little")
                result.tokens += bytes(4)
                result.flags += b"\0"
            if self._garbles_next:
                self._garbles_next = False
                result.tokens += b"\0"
            result.step_ns = int(self.step_s * 1e9)
            self.num_sampled += len(result.flags)
            epoch.outbox.put(shard_pb2.FromShard(epoch=epoch.number, result=result))
            if self._cut_condition is not None and self._cut_condition(table):
                self._cut_condition = None
                self.cut()

    def _take_plans(self, epoch: _Epoch, wait: bool) -> bool:
        """Apply the plans that have come, and return whether a step follows.

        An idle shard acknowledges plans at once (rule 2).
        """
        has_applied = False
        while True:
            try:
                plan = epoch.plans.get(timeout=IDLE_POLL_S) if wait and not has_applied else epoch.plans.get_nowait()
            except queue.Empty:
                break
            try:
                if self._reject_next is not None and plan.admits:
                    message, self._reject_next = self._reject_next, None
                    raise BadPlan(plan.admits[0].slot, "admits", message)
                epoch.table.apply(plan)
            except BadPlan as error:
                rejected = shard_pb2.PlanRejected(
                    plan=plan.number, slot=error.slot, field=error.field_name, message=str(error)
                )
                epoch.outbox.put(shard_pb2.FromShard(epoch=epoch.number, rejected=rejected))
                epoch.end(grpc.StatusCode.INVALID_ARGUMENT, f"plan {plan.number}: {error}")
                return False
            has_applied = True
        if time.monotonic() - epoch.heard_s > self._options.lease_s:
            epoch.end(grpc.StatusCode.DEADLINE_EXCEEDED, "nothing heard from the router for the lease")
            return False
        if epoch.table.is_runnable and self._may_step.is_set():
            return True
        if has_applied and not epoch.table.is_runnable:
            result = shard_pb2.StepResult(plan_applied=epoch.table.plan_applied)
            epoch.outbox.put(shard_pb2.FromShard(epoch=epoch.number, result=result))
        return False


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uds-path", type=Path, required=True)
    parser.add_argument("--step-ms", type=float, default=10.0, help="simulated time of a step")
    parser.add_argument("--num-slots", type=int, default=256)
    parser.add_argument("--num-blocks", type=int, default=65536)
    parser.add_argument("--tokenizer-digest", default="")
    arguments = parser.parse_args()
    options = FakeShardOptions(
        step_s=arguments.step_ms / 1000,
        num_slots=arguments.num_slots,
        num_blocks=arguments.num_blocks,
        tokenizer_digest=arguments.tokenizer_digest,
    )
    with FakeShard(arguments.uds_path, options):
        print(f"fake shard on {arguments.uds_path}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
