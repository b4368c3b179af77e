"""What the router asks a worker of images, and what a worker answers."""

from dataclasses import dataclass

from textmill_router.media.media_item import Grid


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """The first message to a worker.

    `dtype` is that of the model, to which the worker casts pixels: "float32", "bfloat16" or "float16". `cpu_s` is the
    CPU time of one image in whole seconds, and `memory_bytes` bounds the address space of the worker.
    """

    model_dir: str
    dtype: str
    max_pixels: int
    max_tokens: int
    cpu_s: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessorFacts:
    """The answer to the setup. What the image processor of a checkpoint does, as far as prompts show it.

    `placeholder` is the text that chat templates write for an image, and `row_text` the token `row_id` that stands for
    one row of the tower's output. `settings` names the processor and all its settings. Where `puts_bos_behind` is not
    empty, a prompt is that text behind its last image and a line break at its end.
    """

    kind: str
    placeholder: str
    row_text: str
    row_id: int
    settings: str
    puts_bos_behind: str = ""


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """What an image becomes. `text` stands for the image in the prompt; `grid` is that of a model with M-RoPE."""

    text: str
    grid: Grid | None
    num_tensor_bytes: int


@dataclass(frozen=True, slots=True)
class ImageRefusal:
    """Why an image cannot be used.

    `is_too_large` tells images beyond a limit from images that cannot be read, and `is_final` that another try would
    end in the same way.
    """

    reason: str
    is_too_large: bool = False
    is_final: bool = True
