"""Turns the scores of a step into tokens: changes the scores, then takes the best id or draws one."""
