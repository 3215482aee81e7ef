"""Networks by name: the paper's own, and every one that timm knows.

Importing this package has one deliberate effect on another library: timm gets a ``googlenet`` (torchvision's), so
that ``timm.create_model("googlenet")`` works. It costs nothing until timm is imported.
"""

from adapters.models.build import MODELS, build, check_name
from adapters.models.late_registration import when_imported
from adapters.models.simplified_vgg import SimplifiedVGG

__all__ = ["MODELS", "SimplifiedVGG", "build", "check_name"]

when_imported("timm", "adapters.models.googlenet")
