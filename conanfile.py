"""Conan 2 recipe: conan create . ; then requires = "moe_balance/0.1.0" and the CMake target moe_balance::moe_balance."""

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
    exports_sources = "include/*", "LICENSE"
    exports = "include/moe_balance/version.hpp"
    no_copy_source = True

    def set_version(self):
        text = Path(self.recipe_folder, "include/moe_balance/version.hpp").read_text(encoding="utf-8")
        self.version = ".".join(re.findall(r"^#define MOEB_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", text, re.MULTILINE))

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
