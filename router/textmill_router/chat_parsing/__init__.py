"""What a chat answer says: reasoning, text and tool calls, read from the output text as it grows. Pure code."""
