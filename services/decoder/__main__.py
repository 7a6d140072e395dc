"""`python -m services.decoder`"""

from runpy import run_module

# Not the same as to import it: see there.
run_module("services.decoder.main", run_name="__main__", alter_sys=True)
