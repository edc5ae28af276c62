"""What pyproject.toml cannot say: where the packages lie, and the one file at the root of site-packages."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

STARTUP_HOOK = "nnunet_godc.pth"
# Users look for these at the top of the repository; installed, they are part of nnunet_godc.
TOP_LEVEL = ["trainers", "dataset_conversion"]


class BuildPyWithStartupHook(build_py):
    """Puts the start-up hook beside the packages, where `site` reads it and the wheel's RECORD lists it."""

    def run(self) -> None:
        super().run()
        # An editable build leaves build_lib out of the wheel; what lies in install_lib becomes the wheel.
        root = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        Path(root).mkdir(parents=True, exist_ok=True)
        self.copy_file(STARTUP_HOOK, root, preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, str(Path(self.build_lib, STARTUP_HOOK))]


setup(
    packages=[
        *find_packages(include=["nnunet_godc", "nnunet_godc.*"]),
        # No __init__.py, hence not found: nnU-Net reads it as a folder of modules.
        "nnunet_godc._nnunet_plugin",
        *(f"nnunet_godc.{name}" for name in TOP_LEVEL),
    ],
    package_dir={f"nnunet_godc.{name}": name for name in TOP_LEVEL},
    cmdclass={"build_py": BuildPyWithStartupHook},
)
