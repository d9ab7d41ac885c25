"""What the training scripts share. A clone works uninstalled: its own package is found beside this folder."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("modeling_act") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))
