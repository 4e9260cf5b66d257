"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one line that names the thing and the mend. The command line exits with 2."""
