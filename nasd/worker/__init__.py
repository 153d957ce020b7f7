"""The worker plane: trains. Knows one attempt directory, and nothing of the database."""
