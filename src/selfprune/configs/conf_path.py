"""Where the config files lie: inside an installed package, or at the top of the repository."""

from pathlib import Path


def conf_folder() -> Path:
    """The folder that holds `config.yaml` and the config groups."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"
