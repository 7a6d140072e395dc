"""The encoder tier: images to embeddings."""

import os

# Read by OpenMP when torch is loaded. On the CPU every product and norm ends in a barrier; threads
# that spin there, where other processes want the cores too, wait for one that cannot run: ten
# times slower was seen beside two busy processes on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
