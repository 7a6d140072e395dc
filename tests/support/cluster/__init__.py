"""Stand-ins for the programs that a page of the docs types: kubectl, helm, docker and the like.

Each checks its arguments, the files and objects that they name, and all that the pods would need. A
fault becomes a line in the file `faults` of the session, and an exit status of 1.
"""
