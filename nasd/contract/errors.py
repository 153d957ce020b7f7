"""The one exception a user is meant to read."""


class NasdError(Exception):
    """The user's mistake, or a state of the world that only the user can mend.

    The message is one sentence that names the key, file or candidate, and what to do about it.
    The command line prints it without a traceback and exits with code 2.
    """
