"""The passes, one to a file; importing this package registers them all.

To add one, put a file with a Pass subclass here: it is found by itself.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
