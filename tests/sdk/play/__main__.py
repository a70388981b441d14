"""`python -m play AREA RESULTS`: play the scenarios of one area, write what came of them."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path

from play import stage

warnings.simplefilter("ignore")
importlib.import_module(f"play.{sys.argv[1]}")
Path(sys.argv[2]).write_text(json.dumps(stage.play()))
