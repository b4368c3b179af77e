"""OpenAI's dialect, to which all paths under /v1 belong."""
