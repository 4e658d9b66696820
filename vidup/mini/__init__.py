"""The small x4 checkpoint that ships with the package, and how it was trained.

`checkpoint/` has the x4 upscaler's layout. `pictures.py` makes the pictures (surfaces in `textures.py`, flat scenes
in `scenes.py`, rendered ones in `solids.py`), `degrade.py` their low-resolution versions, `model.py` the networks,
`train.py` trains, `measure.py` measures. The model card is README.md.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The checkpoint's folder."""
