"""``python -m dit_accel_eval`` is ``dit-accel eval``."""

import sys

from dit_accel.cli import main

sys.exit(main(["eval", *sys.argv[1:]]))
