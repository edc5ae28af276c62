"""What this package raises when the remedy lies with the user."""


class UserError(Exception):
    """One sentence: what is wrong, where, and how to fix it. The command line prints it and exits with 1."""
