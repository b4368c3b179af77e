"""GET /playground, a page on which prompts are tried, compared and taken away as code."""
