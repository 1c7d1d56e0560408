"""Models on the Hugging Face hub: which files, their download, their removal.

``plan`` names files, ``fetch`` brings them, ``cache`` knows what lies on the disk. Files live in huggingface_hub's own
cache and its environment variables hold (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN). Importing this package does
not import huggingface_hub.
"""

from .plan import Download, RemoteFile, parse, plan_download

__all__ = ["Download", "RemoteFile", "parse", "plan_download"]
