"""rlft: reinforcement-learning fine-tuning of language models.

Start with `rlft.types`; the loop is `rlft.train.rl.loop`. Importing this package loads nothing heavy.
"""

import os

__version__ = "0.1.0"

# The threads of one operation wait for one another, by default with their core kept busy for milliseconds. Where
# another program wants that core, the one that is waited for does not get it, and a rollout takes 45 times as long.
# With this many looks before they sleep it takes 2.5 times as long, and 3 % longer alone on the machine; fewer looks
# cost more alone, more looks beside others. OpenMP reads it when torch is imported; `make bench-busy` measures it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
