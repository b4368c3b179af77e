"""The launchers of one model on several machines: who is there, whether they fit, when ranks start and end."""
