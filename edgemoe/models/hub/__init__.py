"""Models on the Hugging Face hub: the choice of files, their download, their removal.

``choose`` names files, ``download`` brings them, ``cache`` knows the files on the disk. Files are kept in
huggingface_hub's own cache. Its environment variables apply: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN.
Importing this package does not import huggingface_hub.
"""

from .choose import parse, plan_download
from .records import Download, RemoteFile

__all__ = ["Download", "RemoteFile", "parse", "plan_download"]
