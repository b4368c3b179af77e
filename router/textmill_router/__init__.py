"""The HTTP router: validation, text, queue, scheduling and streaming. Never imports torch."""
