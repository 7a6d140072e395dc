"""`python -m pixtral_decoder`: runs a decoder until SIGTERM."""

from runpy import run_module

# An import would not suffice: children of this process import main.py only if it is their parent's
# main module. See the docstring of main.py.
run_module("pixtral_decoder.main", run_name="__main__", alter_sys=True)
