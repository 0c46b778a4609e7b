"""``python -m gpuconv`` is ``gpuconv``."""

import sys

from gpuconv.cli import main

sys.exit(main())
