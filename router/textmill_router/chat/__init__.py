"""A conversation becomes a prompt, and the form of its answers is known."""
