"""`python -m pixtral_decoder`: runs a decoder until SIGTERM."""

from runpy import run_module

# Not the same as to import it: see there.
run_module("pixtral_decoder.main", run_name="__main__", alter_sys=True)
