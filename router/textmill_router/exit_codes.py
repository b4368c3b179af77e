"""The exit codes of the router's process (docs/exit-codes.md)."""

WRONG_SETTING = 2
PORT_TAKEN = 10
BAD_FILES = 15
CHILD_DIED = 18
