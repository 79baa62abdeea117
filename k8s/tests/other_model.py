"""A copy of a model under another version, which is the hash of its file: `python k8s/tests/other_model.py MODEL.pt
COPY.pt`.
"""

import shutil
import sys
import zipfile

shutil.copy(sys.argv[1], sys.argv[2])
with zipfile.ZipFile(sys.argv[2], "a") as file:  # a TorchScript file is a zip
    (folder,) = {name.partition("/")[0] for name in file.namelist()}
    file.writestr(f"{folder}/extra/copied", "the same network, to be told apart in tests")
