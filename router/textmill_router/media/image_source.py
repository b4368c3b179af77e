"""Where an image of a call comes from, and how closely the model shall look at the image."""

from dataclasses import dataclass
from enum import Enum


class Detail(Enum):
    """How closely the model looks. HIGH is the checkpoint's own size, LOW about 256 tokens where the family can."""

    HIGH = "high"
    LOW = "low"


# The values of `detail` in OpenAI's API. `original` asks for the picture as it is, which is what HIGH gives.
DETAILS = {"auto": Detail.HIGH, "high": Detail.HIGH, "original": Detail.HIGH, "low": Detail.LOW}


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image of a call. `field` is the path of the URL in the body, which refusals name.

    `number` counts from 1 the images of a text that has several, because these share one path; else it is None.
    """

    url: str  # `data:` or `http(s):`, not checked yet
    field: str
    detail: Detail = Detail.HIGH
    number: int | None = None
