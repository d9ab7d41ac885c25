"""What the training scripts share. A clone works uninstalled: its own package is found beside this folder."""

import importlib.util
import sys
from pathlib import Path

# Before a script's imports fail one by one with a traceback each.
_needed = ("accelerate", "datasets", "matplotlib", "tqdm", "yaml")
if _missing := [name for name in _needed if importlib.util.find_spec(name) is None]:
    _install = 'in the clone, pip install -c constraints.txt -e ".[train]"'
    sys.exit(f"the training scripts need {', '.join(_missing)}: {_install}")
if importlib.util.find_spec("modeling_act") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))
