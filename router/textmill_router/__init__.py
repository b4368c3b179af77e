"""The HTTP router: validation, text, queue, scheduling and streaming. This package never imports torch."""
