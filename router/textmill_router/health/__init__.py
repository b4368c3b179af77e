"""What the server says of its own health: the states, the edges between them, and the answer of each probe."""
