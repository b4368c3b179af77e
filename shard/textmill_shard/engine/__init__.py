"""The step loop of a rank."""
