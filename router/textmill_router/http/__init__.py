"""HTTP without a dialect: the connection, bodies, answers, event streams."""
