"""Plans that are a small variation of others, under a name of their own.

python -m nnunet_godc.study.plan_variation PLANS.json NAME '{"patch_size": [24, 40, 24], "features": 8, "stages": 3}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nnunet_godc.errors import UserError
from nnunet_godc.shrunken_plans import shrink_plans
from nnunet_godc.study.folder import write_json


def write_variation(source: Path, name: str, sizes: dict[str, Any]) -> Path:
    """Writes ``<name>.json`` beside the plans `source`, and returns it.

    Args:
        source: plans that nnU-Net has made.
        name: identifier of the new ones.
        sizes: keywords of `shrink_plans`.

    Raises:
        UserError: there are other plans of that name already, or these cannot be varied so.
    """
    target = source.with_name(f"{name}.json")
    try:
        varied = shrink_plans(json.loads(source.read_text()), name=name, **sizes)
    except FileNotFoundError:
        raise UserError(f"there are no plans {source} to vary; plan the dataset first.") from None
    except ValueError as error:
        raise UserError(f"{name} cannot be made from {source}: {error}") from error
    except KeyError as error:
        raise UserError(
            f"{source} plan a network without {error}: only plans of a plain U-Net can be varied, such as nnUNetPlans."
        ) from error
    if target.exists() and json.loads(target.read_text()) != varied:
        raise UserError(f"{target} exists and says something else; give the variation another name in the study file.")
    write_json(target, varied)
    return target


def main(arguments: list[str]) -> int:
    source, name, sizes = arguments
    try:
        print(f"Written: {write_variation(Path(source), name, json.loads(sizes))}")
    except UserError as error:
        print(f"nnunet-godc: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
