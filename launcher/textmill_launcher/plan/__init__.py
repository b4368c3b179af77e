"""`launcher plan`: what a model takes of memory, from its config and the headers of its weights alone."""
