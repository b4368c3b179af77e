"""The text of an image for Pixtral and Mistral 3, whose processor in transformers needs torchvision at its import."""

from typing import Any


class PixtralReader:
    """Stands in for transformers' `PixtralProcessor`, with the names that the other processors have."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
        **unused: Any,
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.image_token = image_token
        self._row_end = image_break_token
        self._end = image_end_token

    def _merge_kwargs(self, **unused: Any) -> dict[str, dict[str, Any]]:
        return {"images_kwargs": {}}

    def _process_images(self, images: list[Any], **settings: Any) -> tuple[Any, list[str]]:
        """Each row of squares of merged patches ends with a token of its own, and the last row with another one."""
        side = self.patch_size * self.spatial_merge_size
        processed = self.image_processor(images, patch_size=side, **settings)
        texts = []
        for height, width in processed["image_sizes"]:
            rows = [self.image_token * (width // side)] * (height // side)
            texts.append(self._row_end.join(rows) + self._end)
        return processed, texts
