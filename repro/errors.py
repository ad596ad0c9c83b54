"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """Bad input, with a message that says what was expected, what came, the valid choices and the fix.

    `launch.py` prints it as one message without a traceback and exits with code 2.
    """


class NotApplicable(UserError):
    """A question that has no meaning for this model or data, such as one about heads that it does not have.

    No mistake of the user's: the run ends well, with this as its result.
    """
