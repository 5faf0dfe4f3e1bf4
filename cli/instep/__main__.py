"""`python -m instep`: the same as the command."""

import sys

from instep.main import main

sys.exit(main())
