"""A conversation becomes a prompt."""
