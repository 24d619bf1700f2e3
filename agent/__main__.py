"""`python -m agent` is `driveway`."""

import sys

from agent.cli.main import main

sys.exit(main())
