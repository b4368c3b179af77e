"""What an answer must match."""
