"""Rows without generation: a batch of texts in, vectors, labels, masked tokens or spans out."""
