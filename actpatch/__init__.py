"""Activation patching for transformers: which parts of a model cause a behaviour?

`from actpatch import ActivationPatcher, IOIDataset, load_model` and every other public name, which `__init__.pyi` lists
with the room it comes from. A room is imported when a name of it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
