"""The routes; each dialect has a folder."""
