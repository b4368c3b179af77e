"""The load generator: measures any server that speaks OpenAI's dialect or that of text-generation-inference."""
