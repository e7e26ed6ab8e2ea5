"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in a config, a file or a command line.

    The message is one sentence that names the key or file, the value found and the mend. Entry
    points print it after `error:` and exit with code 2; nothing has been written by then.
    """
