"""The dialect of OpenAI: everything under /v1."""
