"""The forward pass of one rank: batch in, logits out; the KV pool and its memory."""
