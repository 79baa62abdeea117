"""Where pictures come from: files and folders in, upright uint8 tensors in three parts out.

    idx.py      EMNIST, MNIST, EMNIST as CSV ───────────────────────────────────┐
    folders.py  NIST SD19, folders, names ─ prepared.py (decode, prepare, keep) ┴ splits.py ─► train, validation, test
    datasheet.py says what was found.

`python -m training.data ROOT --set data.source=...` reads what a run would read and says what it found.
"""

from training.data.cache import cache_folder
from training.data.datasheet import write_report
from training.data.idx import CLASSES, download, load_csv, load_emnist, load_mnist, read_idx
from training.data.images import DataError, Images, epoch_order, sample_of_each_class, sample_of_writers, without
from training.data.root import add_root, default_root
from training.data.splits import Splits, find_data, load_splits

__all__ = [
    "CLASSES",
    "DataError",
    "Images",
    "Splits",
    "add_root",
    "cache_folder",
    "default_root",
    "download",
    "epoch_order",
    "find_data",
    "load_csv",
    "load_emnist",
    "load_mnist",
    "load_splits",
    "read_idx",
    "sample_of_each_class",
    "sample_of_writers",
    "without",
    "write_report",
]
