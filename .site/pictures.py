"""Pictures inside a notebook's outputs become files: small pages, and each picture once."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

INLINE = re.compile(r'src="data:image/(png|svg\+xml|jpeg);base64,([^"]+)"')


class Pictures:
    """A folder of pictures, named by their content; Sphinx copies it to the top of the site."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pictures").mkdir(parents=True)

    def take_out(self, data: dict, page: str) -> None:
        """Change one output's `data` so that its HTML points to files; `page` shows it.

        The PNG beside such HTML goes: the page shows the HTML, and both are the same picture.
        """
        if "text/html" not in data:
            return
        up = "../" * page.count("/")

        def save(match: re.Match[str]) -> str:
            kind, text = match.groups()
            content = base64.b64decode(text)
            suffix = {"svg+xml": "svg"}.get(kind, kind)
            name = f"pictures/{hashlib.sha256(content).hexdigest()[:20]}.{suffix}"
            (self.folder / name).write_bytes(content)
            return f'src="{up}{name}"'

        data["text/html"] = INLINE.sub(save, "".join(data["text/html"]))
        data.pop("image/png", None)
