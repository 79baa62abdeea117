import sys

from training.reports.report import main

sys.exit(main())
