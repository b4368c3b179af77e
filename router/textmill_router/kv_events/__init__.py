"""Tells routers between machines which prefixes the KV cache holds, over ZeroMQ."""
