"""The launcher: settings, model files and processes, which it starts, watches and stops. It never imports torch."""
