"""From text to Gaussians: models, and corpora of texts. What loads a model needs the extra `text`."""

from index.text.loading import load_encoder
from index.text.precision import TextPrecision
from index.text.protocol import Role, TextEncoder

__all__ = ["Role", "TextEncoder", "TextPrecision", "load_encoder"]
