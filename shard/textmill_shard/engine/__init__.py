"""Runs the step loop of a rank: takes plans in, makes steps and hands out results."""
