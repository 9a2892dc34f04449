"""What a user can mend."""


class UserError(Exception):
    """The message names the file, the tensor where there is one, and the remedy.

    The command line prints it and exits with 1; anything else that is raised is a bug.
    """
