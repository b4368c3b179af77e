"""The formats in which models write tool calls, one file each, and the parts that several formats share."""
