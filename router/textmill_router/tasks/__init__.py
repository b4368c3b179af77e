"""Tasks without generation: what each task reads and answers, and the queue of their rows."""
