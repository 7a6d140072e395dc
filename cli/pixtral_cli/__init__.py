"""The command `pixtral-serve`, and functions that run a whole stack on one machine."""

from pixtral_cli.stack.pixtral_stack import local, pixtral_stack
from pixtral_cli.stack.process_stack import Progress, Stack, StackError

__all__ = ["Progress", "Stack", "StackError", "local", "pixtral_stack"]
