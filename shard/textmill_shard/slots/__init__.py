"""Plans, the rows that plans put into slots, and the rows that make up a step: numbers, no tensors."""
