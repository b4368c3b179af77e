"""What a call leaves for its trace, and the spans that are made of it at the call's end."""
