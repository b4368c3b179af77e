"""Plans, the rows that they seat, and which rows make up a step: numbers, no tensors."""
