"""Images of prompts: what a request says of an image, and how an image becomes the tensors that a shard takes."""
