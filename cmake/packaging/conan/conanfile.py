"""Conan 2 recipe: `conan create cmake/packaging/conan -s compiler.cppstd=20` here, then in a project requires = "moe_balance/0.1.0" and the CMake
target moe_balance::moe_balance. It builds nothing and requires nothing."""

import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy
from conan.tools.layout import basic_layout


class MoeBalance(ConanFile):
    name = "moe_balance"
    description = "Mixture-of-Experts routing and load balancing for CPU and CUDA, header-only"
    license = "Apache-2.0"
    topics = ("mixture-of-experts", "routing", "load-balancing", "cuda", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    no_copy_source = True

    def _clone(self):
        """The root of the clone that the recipe is exported from."""
        return Path(self.recipe_folder).parent.parent.parent

    def set_version(self):
        text = (self._clone() / "include/moe_balance/version.hpp").read_text(encoding="utf-8")
        self.version = ".".join(re.findall(r"^#define MOEB_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", text, re.MULTILINE))

    def export_sources(self):
        copy(self, "LICENSE", str(self._clone()), self.export_sources_folder)
        copy(self, "include/*", str(self._clone()), self.export_sources_folder)

    def layout(self):
        basic_layout(self, src_folder=".")

    def validate(self):
        check_min_cppstd(self, 20)

    def package_id(self):
        self.info.clear()

    def package(self):
        copy(self, "LICENSE", self.source_folder, str(Path(self.package_folder, "licenses")))
        copy(self, "include/*", self.source_folder, self.package_folder)

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        if self.settings.os in ("Linux", "FreeBSD"):
            self.cpp_info.system_libs = ["pthread"]
        self.cpp_info.set_property("cmake_file_name", "moe_balance")
        self.cpp_info.set_property("cmake_target_name", "moe_balance::moe_balance")
        self.cpp_info.set_property("pkg_config_name", "moe_balance")
