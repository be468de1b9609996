"""The one exception whose message is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the person can mend: a wrong key, an unreadable file, a folder without pictures.

    The message says what was wrong, where, and what to do; the command line prints it without a traceback and exits
    with status 2.
    """
