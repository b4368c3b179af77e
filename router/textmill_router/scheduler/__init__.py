"""Who runs, with which blocks: pure decisions, without clock and without I/O."""
