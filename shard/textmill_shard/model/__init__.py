"""A batch goes in, logits come out; the KV pool and its memory."""
