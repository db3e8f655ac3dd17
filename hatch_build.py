"""What the build derives from the project's address: its links, and the README as a package index shows it."""

import re
from pathlib import Path, PurePosixPath

from hatchling.metadata.plugin.interface import MetadataHookInterface

# A block or span of code, which stays as it is; or the start of a link or picture, and its path in the repository.
_CODE_OR_LINK = re.compile(
    r"""(?P<code>```.*?```|`[^`\n]+`) | (?P<start>\]\( | (?:src|href)=") (?![a-z]+:|\#) (?P<path>[^)"\s]+)""",
    re.DOTALL | re.VERBOSE,
)
_PICTURES = {".gif", ".jpg", ".png", ".svg"}


class AddressHook(MetadataHookInterface):
    """Fills in the links and the long description, both of the tag of this version, and what it is classified as."""

    def update(self, metadata: dict) -> None:
        """Set the fields `urls`, `readme` and `classifiers`."""
        address, tag = self.config["address"].rstrip("/"), f"v{metadata['version']}"
        metadata["urls"] = {
            "Homepage": address,
            "Documentation": f"{address}/tree/{tag}/docs",
            "Source": f"{address}/tree/{tag}",
            "Issues": f"{address}/issues",
            "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
        }
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": with_absolute_links(text, address, tag)}
        is_placeholder = address.split("/")[2].endswith(".invalid")  # no host has this ending
        refused = ["Private :: Do Not Upload"] if is_placeholder else []  # by an index
        metadata["classifiers"] = [*self.config["classifiers"], *refused]


def with_absolute_links(text: str, address: str, tag: str) -> str:
    """The Markdown with every link and picture at its address: an index has no files beside it."""

    def replace(found: re.Match[str]) -> str:
        if found["code"]:
            return found["code"]
        view = "raw" if PurePosixPath(found["path"]).suffix in _PICTURES else "blob"
        return f"{found['start']}{address}/{view}/{tag}/{found['path']}"

    return _CODE_OR_LINK.sub(replace, text)
