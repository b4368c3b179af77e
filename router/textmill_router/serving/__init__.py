"""What every call shares, whatever its dialect."""
