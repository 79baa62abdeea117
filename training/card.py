"""The model card of an exported model."""
from pathlib import Path
def write(model: Path, out: Path) -> None:
    pass
