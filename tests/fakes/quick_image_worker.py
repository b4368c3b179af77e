"""A process that speaks as a worker of images does, starts at once, and reads no image: `python quick_image_worker.py`.

An image `refuse` is refused, `die` ends the process in the middle of its answer, and any other image becomes a row for
each of its bytes, in a tensor that holds these bytes.
"""

import os
import sys

from textmill_router.media.frames import NUM_BYTES, BrokenFrame, read_bytes, read_head, write_frame

COMMAND = (sys.executable, "-m", "tests.fakes.quick_image_worker")
ROW = "<row>"


def main() -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    read_head(source)
    facts = {"kind": "quick", "placeholder": "<image>", "row_text": ROW, "row_id": 9, "settings": "s"}
    write_frame(sink, {**facts, "puts_bos_behind": ""})
    while True:
        try:
            head = read_head(source)
            data = read_bytes(source, head[NUM_BYTES])
        except BrokenFrame:
            return
        if data == b"refuse":
            write_frame(sink, {"refusal": {"reason": "it says so", "is_too_large": True, "is_final": True}})
            continue
        answer = {"text": ROW * len(data), "grid": None, "num_tensor_bytes": len(data)}
        tensor = {"name": "pixel_values", "dtype": "bool", "shape": [len(data)], "num_bytes": len(data)}
        if data == b"die":
            write_frame(sink, {"answer": answer, "tensors": [tensor]}, [data[:1]])
            os._exit(1)
        write_frame(sink, {"answer": answer, "tensors": [tensor]}, [data])


if __name__ == "__main__":
    main()
