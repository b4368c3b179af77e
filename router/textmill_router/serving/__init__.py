"""The work that all calls share, in whichever dialect they come."""
