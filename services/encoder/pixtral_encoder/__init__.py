"""The encoder tier: images to embeddings."""

import os

# OpenMP reads this variable when torch is loaded. On the CPU every product and norm ends in a
# barrier. Threads that spin at a barrier take cores from the threads for which they wait. If other
# processes use the same cores, this makes the tower many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
