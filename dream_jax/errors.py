"""The one exception whose message is meant for the person at the keyboard."""

# Longer than any path.
_LONGEST_LINE = 5000


class UserError(ValueError):
    """Something the person can mend: a wrong key, an unreadable file, a folder without pictures.

    The message says what was wrong, where, and what to do; the command line prints it without a traceback and exits
    with status 2. What a terminal would obey or cannot show is escaped as in a Python string, all but line ends.
    """

    def __init__(self, message):
        super().__init__("\n".join(shown(line)[:_LONGEST_LINE] for line in str(message).split("\n")))


def shown(name) -> str:
    """A file's name for a message: what would break the line, or cannot be printed, as in a Python string."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))


def some(names, most: int = 3) -> str:
    """The first few names for a message, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name)[:100] for name in names[:most]) + more
