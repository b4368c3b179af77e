"""OpenAI's dialect: the paths under /v1, which work without that prefix too, and the bodies of
other servers on /tokenize and /detokenize."""
