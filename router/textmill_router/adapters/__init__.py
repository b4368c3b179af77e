"""Which adapters the server knows, and who uses them: pure decisions, without clock and without I/O."""
