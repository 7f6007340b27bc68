"""`python -m sparsegnn`: the same as the `sparsegnn` command."""

import sys

from sparsegnn.cli import main

sys.exit(main())
