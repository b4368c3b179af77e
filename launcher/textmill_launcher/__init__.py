"""Settings, model files and processes: start, watch, stop. Never imports torch."""
