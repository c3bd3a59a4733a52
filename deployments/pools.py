"""The work pool's base job template for each platform: Prefect's stock one, and what `pools/NAME.yaml` changes in it.

`python -m deployments.pools kubernetes` prints the whole template, for Terraform or another Prefect server's form;
deployments/applying.py makes the pool from it.
"""

import copy
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from tasks.errors import ConfigurationError

PACKAGES = {
    "process": "prefect",
    "docker": "prefect-docker",
    "kubernetes": "prefect-kubernetes",
    "ecs": "prefect-aws",
}
FOLDER = Path(__file__).with_name("pools")


def base_job_template(platform: str) -> dict[str, Any]:
    """The base job template of a work pool of this type; a process pool's is Prefect's own, unchanged."""
    if platform not in PACKAGES:
        raise ConfigurationError(f"no work pool template for {platform!r}: there are {', '.join(PACKAGES)}")
    path = FOLDER / f"{platform}.yaml"
    if not path.exists():
        return stock_template(platform)
    import yaml

    return dict(merge(stock_template(platform), yaml.safe_load(path.read_text(encoding="utf-8"))))


def stock_template(platform: str) -> dict[str, Any]:
    """The template that Prefect itself has for this type; from the package's own copy, not from the network."""
    view = files("prefect.server.api") / "collections_data" / "views" / "aggregate-worker-metadata.json"
    stock: dict[str, Any] = json.loads(view.read_text(encoding="utf-8"))[PACKAGES[platform]][platform]
    return dict(stock["default_base_job_configuration"])


def merge(whole: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396): objects are merged, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(whole) if isinstance(whole, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def main() -> int:
    """Print one platform's template as JSON."""
    try:
        template = base_job_template(sys.argv[1] if len(sys.argv) > 1 else "process")
    except ConfigurationError as error:
        print(f"deployments.pools: {error}", file=sys.stderr)
        return 2
    print(json.dumps(template, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
