"""Brings the rows of a step that have each wish of the sampler to the device, with the other numbers of the step."""

import torch

from textmill_shard.engine.upload import Upload
from textmill_shard.sampling.row_selection import Selection, StageRows, StepRows


class WishUpload:
    """The rows of each wish of a step, on their way to the device in the upload of the step."""

    def __init__(self, selection: Selection, upload: Upload) -> None:
        self._selection = selection
        self._upload = upload
        self._numbers = [
            None if rows is None else (upload.add(rows.rows_G), upload.add(rows.slots_G)) for rows in selection
        ]

    def rows(self) -> StepRows:
        """Return the rows on the device. The upload has been sent."""
        return [
            None
            if numbers is None or rows is None
            else StageRows(
                rows_G=self._upload.tensor(numbers[0]), slots_G=self._upload.tensor(numbers[1]), on_host=rows
            )
            for numbers, rows in zip(self._numbers, self._selection, strict=True)
        ]


def build_step_rows(selection: Selection, device: torch.device) -> StepRows:
    """Copy the rows of each wish to the device of the scores, by themselves."""
    upload = Upload(device)
    wishes = WishUpload(selection, upload)
    upload.send()
    return wishes.rows()
