"""Where it runs: schedules, work pools, images, and the local stand-in for AWS."""

import flows as flows  # before all else: its import lets Ctrl-C end a command line that is being imported
