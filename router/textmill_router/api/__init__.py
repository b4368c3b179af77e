"""HTTP routes: parse a dialect, run a generation, encode its events."""
