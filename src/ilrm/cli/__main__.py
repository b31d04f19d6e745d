"""``python -m ilrm.cli``."""

import sys

from ilrm.cli import main

sys.exit(main())
