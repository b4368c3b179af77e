"""HTTP without a dialect: the connection, bodies, answers, errors, event streams."""
