#!/usr/bin/env python3
"""recipes_test.py ROOT VERSION: the Conan recipe and the vcpkg port say what the library says of itself. Neither tool is needed: the recipe
runs against stand-ins for what it imports."""

import json
import pathlib
import re
import sys
import tempfile
import types

root, version = pathlib.Path(sys.argv[1]), sys.argv[2]


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def stand_ins(copied):
    """Modules named conan.* with the few names that the recipe imports."""
    names = ["conan", "conan.tools", "conan.tools.build", "conan.tools.files", "conan.tools.layout"]
    modules = {name: types.ModuleType(name) for name in names}
    modules["conan"].ConanFile = object
    modules["conan.tools.build"].check_min_cppstd = lambda recipe, standard: check(standard == 20, "the recipe asks for C++20")
    modules["conan.tools.layout"].basic_layout = lambda recipe, **options: None
    modules["conan.tools.files"].copy = lambda recipe, pattern, source, target: copied.append((pattern, source, target))
    sys.modules.update(modules)


class CppInfo:
    def __init__(self):
        self.properties = {}

    def set_property(self, name, value):
        self.properties[name] = value


def check_conan():
    copied = []
    stand_ins(copied)
    text = (root / "conanfile.py").read_text(encoding="utf-8")
    names = {}
    exec(compile(text, "conanfile.py", "exec"), names)  # the recipe, and nothing else
    recipe = names["MoeBalance"]()
    recipe.recipe_folder = str(root)
    recipe.set_version()
    check(recipe.version == version, f"conanfile.py has version {recipe.version}, the library {version}")
    check(re.search(rf'requires = "moe_balance/{re.escape(version)}"', text), "conanfile.py's example requires this version")
    for pattern in recipe.exports_sources:
        check(list(root.glob(pattern)), f"conanfile.py exports {pattern}, which is not there")
    with tempfile.TemporaryDirectory() as package:
        recipe.source_folder, recipe.package_folder = str(root), package
        recipe.validate()
        recipe.package()
    check({pattern for pattern, _, _ in copied} == {"LICENSE", "include/*"}, "conanfile.py packages the headers and the license")
    recipe.settings = types.SimpleNamespace(os="Linux")
    recipe.cpp_info = CppInfo()
    recipe.package_info()
    check(recipe.cpp_info.properties["cmake_target_name"] == "moe_balance::moe_balance", "conanfile.py's target")


def check_vcpkg():
    port = root / "ports" / "moe-balance"
    manifest = json.loads((port / "vcpkg.json").read_text(encoding="utf-8"))
    check(manifest["version-semver"] == version, f"vcpkg.json has version {manifest['version-semver']}, the library {version}")
    check(manifest["name"] == port.name, "vcpkg.json's name is its folder's")
    portfile = (port / "portfile.cmake").read_text(encoding="utf-8")
    options = re.findall(r"-D(MOE_BALANCE_\w+)=", portfile)
    build = (root / "CMakeLists.txt").read_text(encoding="utf-8")
    check(len(options) == 4, "portfile.cmake turns off tests, benchmarks, examples and CUDA")
    for option in options:
        check(re.search(rf"^(option|set)\({option} ", build, re.MULTILINE), f"portfile.cmake sets {option}, which CMakeLists.txt does not have")


check_conan()
check_vcpkg()
print(f"conanfile.py and ports/moe-balance agree with version {version}")
