"""The ranks of one model, and which part of each tensor a rank owns."""
