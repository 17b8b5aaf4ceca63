"""``python -m face_mllm VERB`` and ``accelerate launch -m face_mllm VERB``: the command line."""

import sys

from face_mllm.cli import main

sys.exit(main())
