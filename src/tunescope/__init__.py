"""tunescope: what safety fine-tuning changes inside a language model, and why jailbreaks get through."""

from importlib.metadata import version

__version__ = version("tunescope")
