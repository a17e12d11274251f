"""Run the command line: ``python -m dit_accel`` is ``dit-accel``."""

import sys

from dit_accel.cli import main

sys.exit(main())
