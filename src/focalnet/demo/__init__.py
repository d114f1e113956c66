"""A web page that shows what a FocalNet sees: ``focalnet demo``. It needs the extra ``demo`` (Gradio)."""

from focalnet.demo.serving import load_models, running, serve

__all__ = ["load_models", "running", "serve"]
