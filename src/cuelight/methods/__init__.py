"""The methods, one file each in family folders; see `cuelight.methods.base` for what a method is.

Called, ``cuelight.methods()``, it lists them: `cuelight.overview.methods`.
"""

from cuelight._door import callable_as

callable_as(__name__, "cuelight.overview", "methods")
