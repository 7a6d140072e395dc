"""The command `pixtral-serve`, and a whole stack on one machine from Python."""

# Not on demand, by `__getattr__`: the function `local` must replace the package of that name.
from pixtral_cli.local.pixtral_stack import local, pixtral_stack
from pixtral_cli.local.process_stack import Progress, Stack, StackError

__all__ = ["Progress", "Stack", "StackError", "local", "pixtral_stack"]
