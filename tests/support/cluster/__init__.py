"""Stand-ins for the programs in the commands of a docs page: kubectl, helm, docker and others.

Each checks its arguments, the files and objects that they name, and everything that the pods need.
A fault adds a line to the session's file `faults`, and makes the exit status 1.
"""
