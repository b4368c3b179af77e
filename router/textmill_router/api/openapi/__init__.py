"""The description of all routes, and the page on which they can be tried."""
